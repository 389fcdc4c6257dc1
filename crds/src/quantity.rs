//! A resource quantity as Kubernetes writes it: `500m`, `8`, `24Gi`.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

/// A decimal number with an optional suffix. Numbers without quotes are taken too.
#[derive(Serialize, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity(pub String);

/// No sign and no exponent: nothing that we measure is negative.
const PATTERN: &str = r"^[0-9]{1,18}(\.[0-9]{1,9})?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$";
const LONGEST: u32 = 32;
/// Suffixes with the factor as a power of 1000 or 1024. Longer ones come first, so that `Ki` is not read as `i`.
const SUFFIXES: [(&str, u128); 12] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("Ei", 1 << 60),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000),
];

impl Quantity {
    /// The value in thousandths, rounded up; none where it is not a quantity or passes 2^64 thousandths.
    pub fn thousandths(&self) -> Option<u64> {
        let text = self.0.as_str();
        let (number, factor) = match text.strip_suffix('m') {
            Some(number) => (number, 1),
            None => SUFFIXES
                .iter()
                .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, factor * 1_000)))
                .unwrap_or((text, 1_000)),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits_only = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty()
            || whole.len() > 18
            || fraction.len() > 9
            || !digits_only(whole)
            || !digits_only(fraction)
        {
            return None;
        }
        let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
        u64::try_from(digits.checked_mul(factor)?.div_ceil(scale)).ok()
    }

    /// The value as whole units (bytes, cores), rounded up; none where it is not a quantity.
    pub fn units(&self) -> Option<u64> {
        self.thousandths().map(|thousandths| thousandths.div_ceil(1_000))
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl From<&str> for Quantity {
    fn from(text: &str) -> Self {
        Quantity(text.to_owned())
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Quantity;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a quantity such as 8 or 24Gi")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Quantity, E> {
                Ok(Quantity(text.to_owned()))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Quantity, E> {
                Ok(Quantity(number.to_string()))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Quantity, E> {
                Ok(Quantity(number.to_string()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "anyOf": [{ "type": "integer" }, { "type": "string" }],
            // The pattern holds for strings only.
            "minimum": 0,
            "pattern": PATTERN,
            "maxLength": LONGEST,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_counted_in_units_rounded_up() {
        for (text, units) in [
            ("0", 0),
            ("8", 8),
            ("500m", 1),
            ("1500m", 2),
            ("1.5", 2),
            ("24Gi", 24 << 30),
            ("1.5Ki", 1536),
            ("2k", 2_000),
            ("3M", 3_000_000),
        ] {
            assert_eq!(Quantity::from(text).units(), Some(units), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_has_no_value() {
        for text in ["", "Gi", "-1", "1e3", "1 Gi", "1gb", ".5", "99Ei"] {
            assert_eq!(Quantity::from(text).units(), None, "{text}");
        }
    }

    #[test]
    fn numbers_without_quotes_are_taken() {
        assert_eq!(
            serde_json::from_str::<Quantity>("8").unwrap(),
            Quantity::from("8")
        );
        assert_eq!(
            serde_json::from_str::<Quantity>("\"8Gi\"").unwrap(),
            Quantity::from("8Gi")
        );
        assert!(serde_json::from_str::<Quantity>("1.5").is_err());
    }
}
