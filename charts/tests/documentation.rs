//! The chart's README and schema say what values.yaml says.

use std::fs;
use std::path::{Path, PathBuf};

use prover_chart::{rows, table, with_table};
use serde_json::Value;

/// Values that parent charts set and the chart does not read.
const FOR_PARENT_CHARTS: [&str; 2] = ["global", "enabled"];

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("prover-operator")
}

fn read(name: &str) -> String {
    fs::read_to_string(chart().join(name)).expect("a file of the chart")
}

/// With `UPDATE_README=1` it writes the table instead.
#[test]
fn the_table_in_the_readme_is_what_the_values_say() {
    let table = table(&rows(&read("values.yaml")).expect("every value has a comment"));
    let readme = read("README.md");
    let expected = with_table(&readme, &table).expect("the README has a place for the table");
    if std::env::var_os("UPDATE_README").is_some() {
        fs::write(chart().join("README.md"), expected).expect("the README can be written");
    } else {
        assert!(
            readme == expected,
            "the table of values in the README is stale: run `make chart-readme`"
        );
    }
}

#[test]
fn the_schema_knows_no_value_that_has_no_default() {
    let values: Value = serde_saphyr::from_str(&read("values.yaml")).expect("values");
    let schema: Value = serde_json::from_str(&read("values.schema.json")).expect("a schema");
    let mut missing = Vec::new();
    compare(&schema, &values, "", &mut missing);
    missing.retain(|path| !FOR_PARENT_CHARTS.contains(&path.as_str()));
    assert_eq!(missing, ["resources.claims"], "values without a default");
}

fn compare(schema: &Value, values: &Value, path: &str, missing: &mut Vec<String>) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        match values.get(name) {
            Some(value) => compare(property, value, &path, missing),
            None => missing.push(path),
        }
    }
}

#[test]
fn the_chart_has_the_version_of_the_workspace() {
    let chart: Value = serde_saphyr::from_str(&read("Chart.yaml")).expect("a chart");
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
}
