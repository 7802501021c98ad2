//! The API server's CEL rules, evaluated without an API server.

use std::collections::BTreeMap;

use kube::core::cel::{ValidationError, Validator};
use serde_json::Value;

/// The schema of a kind, as the API server gets it.
pub fn schema(kind: &str) -> Value {
    let definition = crds::manifests::definitions()
        .into_iter()
        .find(|definition| definition.spec.names.kind == kind)
        .unwrap_or_else(|| panic!("no kind {kind:?}"));
    let version = &definition.spec.versions[0];
    let schema = version
        .schema
        .as_ref()
        .and_then(|s| s.open_api_v3_schema.as_ref());
    serde_json::to_value(schema.expect("a schema")).expect("a schema is JSON")
}

/// What the rules of its kind say against an object.
pub fn complaints(object: &Value) -> Vec<ValidationError> {
    let kind = object["kind"].as_str().unwrap_or_default();
    match Validator::new().validate(&schema(kind), object, None) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_vec(),
    }
}

/// Every rule in a schema, by the place that it stands at.
pub fn rules(schema: &Value) -> BTreeMap<String, Vec<String>> {
    fn collect(schema: &Value, place: &str, found: &mut BTreeMap<String, Vec<String>>) {
        for rule in schema["x-kubernetes-validations"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let text = rule["rule"].as_str().unwrap_or_default();
            found
                .entry(place.to_owned())
                .or_default()
                .push(text.to_owned());
        }
        for (name, child) in schema["properties"].as_object().into_iter().flatten() {
            collect(
                child,
                format!("{place}.{name}").trim_start_matches('.'),
                found,
            );
        }
        for (member, suffix) in [("items", "[]"), ("additionalProperties", "{}")] {
            if schema[member].is_object() {
                collect(&schema[member], &format!("{place}{suffix}"), found);
            }
        }
    }
    let mut found = BTreeMap::new();
    collect(schema, "", &mut found);
    found
}
