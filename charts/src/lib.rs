//! The table of values in the README of the chart `prover-operator`, made from the comments in its `values.yaml`.
//!
//! Owns how a commented value becomes a row. Does not own the chart, which Helm renders.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

/// Line of the README after which the table begins.
pub const TABLE_BEGIN: &str = "<!-- values.yaml as a table, written by `make chart-readme`: begin -->";
/// Line of the README before which the table ends.
pub const TABLE_END: &str = "<!-- end -->";

/// A key of a YAML mapping, with its indentation.
static KEY: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^( *)([A-Za-z0-9_-]+):(?: .*)?$").ok());

/// A value that a user may set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// As `--set` takes it, such as `image.tag`.
    pub path: String,
    /// Default as JSON in one line.
    pub default: String,
    /// The comment above the value.
    pub description: String,
}

/// Why the values can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ValuesError {
    /// They are no YAML.
    #[error("values.yaml is malformed: {source}")]
    Malformed {
        /// What is wrong with it.
        #[from]
        source: serde_saphyr::Error,
    },
    /// A value has no comment.
    #[error("{path} in values.yaml has no comment above it: say what it does")]
    Undescribed {
        /// The value.
        path: String,
    },
}

impl ValuesError {
    /// Short name of the kind of error.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            ValuesError::Malformed { .. } => "Malformed",
            ValuesError::Undescribed { .. } => "Undescribed",
        }
    }
}

/// A row for every commented value that has no commented values inside.
///
/// # Errors
/// When the values are no YAML, or one of them is in no commented value.
pub fn rows(yaml: &str) -> Result<Vec<Row>, ValuesError> {
    let values: Value = serde_saphyr::from_str(yaml)?;
    let comments = comments(yaml);
    let rows: Vec<Row> = comments
        .iter()
        .filter(|(path, _)| !comments.iter().any(|(other, _)| is_inside(other, path)))
        .map(|(path, description)| Row {
            path: path.clone(),
            default: at(&values, path).map_or_else(String::new, Value::to_string),
            description: description.clone(),
        })
        .collect();
    let mut undescribed = leaves(&values, "").into_iter().filter(|leaf| {
        !rows
            .iter()
            .any(|row| row.path == *leaf || is_inside(leaf, &row.path))
    });
    match undescribed.next() {
        Some(path) => Err(ValuesError::Undescribed { path }),
        None => Ok(rows),
    }
}

/// The rows as a Markdown table.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut table = String::from("| Value | Default | Meaning |\n|---|---|---|\n");
    for row in rows {
        let cells = [
            format!("`{}`", row.path),
            format!("`{}`", row.default),
            row.description.clone(),
        ];
        // A pipe would end its cell.
        let cells = cells.map(|cell| cell.replace('|', "\\|"));
        table.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    table
}

/// The README with the table in its place; none where it has no place for it.
#[must_use]
pub fn with_table(readme: &str, table: &str) -> Option<String> {
    let (before, rest) = readme.split_once(TABLE_BEGIN)?;
    let (_, after) = rest.split_once(TABLE_END)?;
    Some(format!("{before}{TABLE_BEGIN}\n\n{table}\n{TABLE_END}{after}"))
}

fn is_inside(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'))
}

/// Paths of mappings' keys with the comment directly above each.
fn comments(yaml: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    // Keys that surround the line, with their indentation.
    let mut outer: Vec<(usize, &str)> = Vec::new();
    for line in yaml.lines() {
        if let Some(text) = line.trim_start().strip_prefix('#') {
            comment.push(text.trim());
            continue;
        }
        let key = KEY.as_ref().and_then(|key| key.captures(line));
        let parts = key.and_then(|key| Some((key.get(1)?.len(), key.get(2)?.as_str())));
        if let Some((indentation, name)) = parts {
            outer.retain(|(other, _)| *other < indentation);
            outer.push((indentation, name));
            if !comment.is_empty() {
                let path: Vec<&str> = outer.iter().map(|(_, name)| *name).collect();
                found.push((path.join("."), comment.join(" ")));
            }
        }
        comment.clear();
    }
    found
}

fn at<'a>(values: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(values, |value, key| value.get(key))
}

/// Paths of everything that is no mapping with content.
fn leaves(value: &Value, path: &str) -> Vec<String> {
    match value.as_object() {
        Some(fields) if !fields.is_empty() => fields
            .iter()
            .flat_map(|(key, inner)| {
                let separator = if path.is_empty() { "" } else { "." };
                leaves(inner, &format!("{path}{separator}{key}"))
            })
            .collect(),
        _ => vec![path.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: &str = "
# The image
image:
  # Where it is
  registry: localhost
  # Which it is
  tag: \"\"

# What it asks for,
# and no more
resources:
  limits:
    memory: 1Gi
";

    #[test]
    fn a_row_is_the_innermost_commented_value() {
        let rows = rows(VALUES).unwrap();
        let paths: Vec<&str> = rows.iter().map(|row| row.path.as_str()).collect();
        assert_eq!(paths, ["image.registry", "image.tag", "resources"]);
        assert_eq!(rows[1].default, "\"\"");
        assert_eq!(rows[2].default, r#"{"limits":{"memory":"1Gi"}}"#);
        assert_eq!(rows[2].description, "What it asks for, and no more");
    }

    #[test]
    fn a_value_without_comment_is_told() {
        let error = rows(&VALUES.replace("  # Which it is\n", "")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "image.tag in values.yaml has no comment above it: say what it does"
        );
        assert_eq!(error.category(), "Undescribed");
    }

    #[test]
    fn a_blank_line_parts_a_comment_from_what_follows() {
        let error = rows("# About this file\n\nreplicas: 2\n").unwrap_err();
        assert!(error.to_string().starts_with("replicas "), "{error}");
    }

    #[test]
    fn a_table_takes_the_place_of_the_one_before() {
        let table = table(&rows("# Either a | or b\nword: a\n").unwrap());
        assert!(
            table.contains("| `word` | `\"a\"` | Either a \\| or b |"),
            "{table}"
        );
        let readme = format!("# Title\n{TABLE_BEGIN}\nold\n{TABLE_END}\nend\n");
        let renewed = with_table(&readme, &table).unwrap();
        assert!(
            !renewed.contains("old") && renewed.ends_with("end\n"),
            "{renewed}"
        );
        assert_eq!(with_table(&renewed, &table).as_ref(), Some(&renewed));
    }
}
