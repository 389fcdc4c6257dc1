//! Structure and bounds of a schema: types, required and unknown fields, lengths, ranges, patterns, enumerations.
//!
//! Knows the part of OpenAPI that our CRDs use; a keyword that it does not know makes a test of the schema fail.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use regex::Regex;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::Violation;

/// Keywords that are checked here or have no effect on what is valid.
#[cfg(test)]
pub(crate) const KNOWN_KEYWORDS: [&str; 22] = [
    "additionalProperties",
    "anyOf",
    "default",
    "description",
    "enum",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "pattern",
    "properties",
    "required",
    "type",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-validations",
];
/// Edits that a misspelt name may be away from the right one.
const TYPING_MISTAKES: usize = 2;
/// Longest name of an object.
const LONGEST_NAME: usize = 253;

/// The schema of `metadata`, which CRDs leave to the API server.
pub(super) fn metadata_schema() -> Value {
    let generator = SchemaSettings::openapi3()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator();
    serde_json::to_value(generator.into_root_schema_for::<ObjectMeta>()).expect("a schema is JSON")
}

/// Checks a whole object: its own fields and its metadata.
pub(super) fn check_object(schema: &Value, metadata: &Value, object: &Value) -> Vec<Violation> {
    let mut walk = Walk {
        root: schema,
        violations: Vec::new(),
    };
    let Some(fields) = object.as_object() else {
        walk.refuse(
            "",
            "an object needs apiVersion, kind, metadata and spec".to_owned(),
        );
        return walk.violations;
    };
    let empty = Value::Object(Map::new());
    let meta = fields.get("metadata").unwrap_or(&empty);
    walk.metadata(metadata, meta);
    let own: Map<String, Value> = fields
        .iter()
        .filter(|(name, _)| !["apiVersion", "kind", "metadata"].contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    walk.node(schema, &Value::Object(own), "");
    walk.violations
}

struct Walk<'a> {
    root: &'a Value,
    violations: Vec<Violation>,
}

impl Walk<'_> {
    fn refuse(&mut self, path: &str, message: String) {
        self.violations.push(Violation {
            path: path.to_owned(),
            message,
            position: None,
        });
    }

    fn metadata(&mut self, schema: &Value, meta: &Value) {
        let Some(fields) = meta.as_object() else {
            return self.refuse(
                "metadata",
                format!("must be an object with a name, not {}", kind_of(meta)),
            );
        };
        let known = schema["properties"]
            .as_object()
            .expect("the schema of ObjectMeta has fields");
        for name in fields.keys().filter(|name| !known.contains_key(*name)) {
            let hint = nearest(name, known.keys())
                .map(|near| format!(": did you mean `{near}`?"))
                .unwrap_or_default();
            self.refuse(&join("metadata", name), format!("unknown field `{name}`{hint}"));
        }
        match fields.get("name").or_else(|| fields.get("generateName")) {
            None => self.refuse("metadata.name", "is required: give the object a name".to_owned()),
            Some(Value::String(name)) if is_object_name(name, fields.contains_key("name")) => {}
            Some(name) => self.refuse(
                "metadata.name",
                format!("{name} is no valid name: use at most 253 lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit"),
            ),
        }
    }

    fn node(&mut self, schema: &Value, value: &Value, path: &str) {
        let before = self.violations.len();
        self.type_and_bounds(schema, value, path);
        if self.violations.len() > before {
            return;
        }
        match value {
            Value::Object(fields) => self.object(schema, fields, path),
            Value::Array(items) => self.array(schema, items, path),
            _ => {}
        }
    }

    fn type_and_bounds(&mut self, schema: &Value, value: &Value, path: &str) {
        if let Some(expected) = wrong_type(schema, value) {
            let message = match value {
                Value::Null => format!("is empty: write {expected}, or leave the line out"),
                _ => format!("must be {expected}, not {}", shown(value)),
            };
            return self.refuse(path, explained(message, schema));
        }
        if let Some(allowed) = schema["enum"].as_array()
            && !allowed.contains(value)
        {
            let words: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
            let hint = value
                .as_str()
                .and_then(|word| nearest(word, words.iter()))
                .map(|near| format!("did you mean `{near}`? "))
                .unwrap_or_default();
            return self.refuse(
                path,
                format!(
                    "{} is not supported: {hint}Write one of {}",
                    shown(value),
                    words.join(", ")
                ),
            );
        }
        let broken = match value {
            Value::String(text) => broken_text_bound(schema, text),
            Value::Number(_) if schema["x-kubernetes-int-or-string"] == true => {
                broken_text_bound(schema, &value.to_string())
            }
            Value::Number(number) => broken_number_bound(schema, number),
            Value::Array(items) => broken_count(schema, "minItems", "maxItems", items.len(), "entries"),
            Value::Object(fields) => {
                broken_count(schema, "minProperties", "maxProperties", fields.len(), "entries")
            }
            _ => None,
        };
        if let Some(message) = broken {
            self.refuse(path, explained(message, schema));
        }
    }

    fn object(&mut self, schema: &Value, fields: &Map<String, Value>, path: &str) {
        let known = schema["properties"].as_object();
        for (name, value) in fields {
            let child = join(path, name);
            match (
                known.and_then(|known| known.get(name)),
                schema.get("additionalProperties"),
            ) {
                (Some(field), _) => self.node(field, value, &child),
                (None, Some(entry)) if entry.is_object() => self.node(entry, value, &child),
                (None, _) => {
                    let hint = self.hint(name, path, known);
                    self.refuse(&child, format!("unknown field `{name}`{hint}"));
                }
            }
        }
        for name in schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
        {
            if !fields.contains_key(name) {
                let field = known.and_then(|known| known.get(name)).unwrap_or(&Value::Null);
                self.refuse(&join(path, name), explained("is required".to_owned(), field));
            }
        }
    }

    /// A name that is nearly right here, or exactly right somewhere else.
    fn hint(&self, name: &str, path: &str, known: Option<&Map<String, Value>>) -> String {
        let Some(known) = known else { return String::new() };
        if let Some(near) = nearest(name, known.keys()) {
            return format!(": did you mean `{near}`?");
        }
        match place_of(self.root, name) {
            Some(place) => format!(": did you mean `{place}`? (check the indentation)"),
            None => {
                let mut names: Vec<&str> = known.keys().map(String::as_str).collect();
                names.sort_unstable();
                let place = if path.is_empty() { "the object" } else { path };
                format!(": {place} has {}", names.join(", "))
            }
        }
    }

    fn array(&mut self, schema: &Value, items: &[Value], path: &str) {
        for (index, item) in items.iter().enumerate() {
            self.node(&schema["items"], item, &format!("{path}[{index}]"));
        }
        let keys: Vec<&str> = match schema["x-kubernetes-list-type"].as_str() {
            Some("map") => schema["x-kubernetes-list-map-keys"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect(),
            Some("set") => Vec::new(),
            _ => return,
        };
        let mut seen = BTreeSet::new();
        for (index, item) in items.iter().enumerate() {
            let identity = if keys.is_empty() {
                item.to_string()
            } else {
                keys.iter()
                    .map(|key| item[*key].to_string())
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            if !seen.insert(identity.clone()) {
                let what = if keys.is_empty() {
                    String::new()
                } else {
                    format!("{} ", keys.join(", "))
                };
                self.refuse(
                    &format!("{path}[{index}]"),
                    format!("Duplicate value: {what}{identity} is given twice"),
                );
            }
        }
    }
}

/// The path of a field; a name with dots goes into brackets.
pub(crate) fn join(path: &str, name: &str) -> String {
    match (path.is_empty(), name.contains('.')) {
        (_, true) => format!("{path}[{name}]"),
        (true, false) => name.to_owned(),
        (false, false) => format!("{path}.{name}"),
    }
}

/// A message with what the documentation says of the field.
fn explained(message: String, schema: &Value) -> String {
    match schema["description"].as_str() {
        Some(description) => format!(
            "{message} ({})",
            description.replace('\n', " ").trim_end_matches('.')
        ),
        None => message,
    }
}

/// What should have been there, if something else is.
fn wrong_type(schema: &Value, value: &Value) -> Option<&'static str> {
    if schema["x-kubernetes-int-or-string"] == true {
        let fits = value.is_string() || value.is_u64() || value.is_i64();
        return (!fits).then_some("a quantity such as 8 or 24Gi");
    }
    let (fits, expected) = match schema["type"].as_str()? {
        "object" => (value.is_object(), "an object"),
        "array" => (value.is_array(), "a list"),
        "string" => (
            value.is_string(),
            "a string (in quotes if it looks like a number)",
        ),
        "boolean" => (value.is_boolean(), "true or false"),
        "integer" => (value.is_i64() || value.is_u64(), "a whole number"),
        "number" => (value.is_number(), "a number"),
        _ => (true, ""),
    };
    (!fits).then_some(expected)
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A value in a message: short ones as they are.
fn shown(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    if text.len() <= LONGEST && !value.is_object() && !value.is_array() {
        text
    } else {
        kind_of(value).to_owned()
    }
}

fn broken_text_bound(schema: &Value, text: &str) -> Option<String> {
    let length = text.chars().count() as u64;
    if let Some(most) = schema["maxLength"].as_u64().filter(|most| length > *most) {
        return Some(format!("has {length} characters, at most {most} are allowed"));
    }
    if let Some(least) = schema["minLength"].as_u64().filter(|least| length < *least) {
        return Some(if length == 0 {
            "must not be empty".to_owned()
        } else {
            format!("has {length} characters, at least {least} are needed")
        });
    }
    if schema["format"] == "date-time"
        && serde_json::from_value::<Time>(Value::String(text.to_owned())).is_err()
    {
        return Some(format!(
            "{} is no time: write it like 2026-12-24T18:00:00Z",
            shown(&Value::String(text.to_owned()))
        ));
    }
    if let Some(pattern) = schema["pattern"].as_str() {
        let matches = Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(text));
        if !matches {
            return Some(format!(
                "{} must match {pattern}",
                shown(&Value::String(text.to_owned()))
            ));
        }
    }
    None
}

fn broken_number_bound(schema: &Value, number: &serde_json::Number) -> Option<String> {
    // i128 holds every integer of JSON exactly; bounds are written as floating point numbers in a CRD.
    let value = number
        .as_i64()
        .map(i128::from)
        .or_else(|| number.as_u64().map(i128::from))?;
    let (format_least, format_most) = match schema["format"].as_str() {
        Some("int32") => (i128::from(i32::MIN), i128::from(i32::MAX)),
        _ => (i128::from(i64::MIN), i128::from(i64::MAX)),
    };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "bounds of our schemas are whole numbers"
    )]
    let bound = |keyword: &str| schema[keyword].as_f64().map(|bound| bound as i128);
    let least = bound("minimum").unwrap_or(format_least);
    let most = bound("maximum").unwrap_or(format_most);
    if value < least {
        Some(format!("{value} is too small, at least {least} is needed"))
    } else if value > most {
        Some(format!("{value} is too large, at most {most} is allowed"))
    } else {
        None
    }
}

fn broken_count(schema: &Value, least: &str, most: &str, count: usize, what: &str) -> Option<String> {
    let count = count as u64;
    if let Some(most) = schema[most].as_u64().filter(|most| count > *most) {
        return Some(format!("has {count} {what}, at most {most} are allowed"));
    }
    let least = schema[least].as_u64().filter(|least| count < *least)?;
    Some(format!("has {count} {what}, at least {least} are needed"))
}

/// The name that was probably meant.
fn nearest<'a, Name: AsRef<str> + 'a>(name: &str, known: impl Iterator<Item = &'a Name>) -> Option<String> {
    let lower = name.to_lowercase();
    known
        .map(|candidate| {
            (
                strsim::osa_distance(&lower, &candidate.as_ref().to_lowercase()),
                candidate.as_ref(),
            )
        })
        // A short name has few letters to be mistaken in.
        .filter(|(distance, candidate)| {
            *distance <= TYPING_MISTAKES && *distance * 2 <= candidate.len().min(name.len())
        })
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}

/// The shallowest place below `spec` that has a field of exactly this name.
fn place_of(root: &Value, name: &str) -> Option<String> {
    let mut level = vec![("spec".to_owned(), &root["properties"]["spec"])];
    while !level.is_empty() {
        let mut next = Vec::new();
        for (path, schema) in level {
            let fields = schema["properties"]
                .as_object()
                .or_else(|| schema["items"]["properties"].as_object());
            let marker = if schema["items"].is_object() { "[]" } else { "" };
            for (field, child) in fields.into_iter().flatten() {
                let place = format!("{path}{marker}.{field}");
                if field == name {
                    return Some(place);
                }
                next.push((place, child));
            }
        }
        level = next;
    }
    None
}

fn is_object_name(name: &str, whole: bool) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.iter().all(|byte| inner(*byte) || *byte == b'-')
            && bytes.first().is_some_and(|byte| inner(*byte))
            && bytes.last().is_some_and(|byte| inner(*byte))
    };
    // A generated name goes on after the last letter, so it may end with a hyphen.
    let name = if whole { name } else { name.trim_end_matches('-') };
    name.len() <= LONGEST_NAME && name.split('.').all(label)
}
