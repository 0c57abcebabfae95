//! The interface as a document in the form of OpenAPI 3.1, made of [`OPERATIONS`] and the types that travel.
//!
//! What is read and what is written are not the same: a field that may be left out of a request is in every answer, and
//! what may be added to an answer later is an error in a request. A type that is in both and differs has two schemas,
//! that of requests with a name that ends in `Input`.

use crate::content::{Content, Parameter, Type};
use crate::error::ApiError;
use crate::operations::{Hosts, OPERATIONS, Operation};
use schemars::SchemaGenerator;
use schemars::generate::{Contract, SchemaSettings};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// The whole document.
#[must_use]
pub fn document() -> Value {
    let (mut read, mut written) =
        (generator(Contract::Deserialize), generator(Contract::Serialize));
    let error = content(&Content::Json(Type::of::<ApiError>()), &mut written);
    let mut requests: Vec<_> = OPERATIONS.iter().map(|one| request(one, &mut read)).collect();
    let answers: Vec<_> =
        OPERATIONS.iter().map(|one| responses(one, &error, &mut written)).collect();
    let mut schemas = written.take_definitions(true);
    schemas.values_mut().for_each(open);
    let mut inputs = read.take_definitions(true);
    for name in differing(&inputs, &schemas) {
        let schema = inputs.remove(&name).unwrap_or_default();
        inputs.insert(format!("{name}{INPUT}"), schema);
        let (from, to) = (reference(&name), reference(&format!("{name}{INPUT}")));
        requests.iter_mut().chain(inputs.values_mut()).for_each(|one| rename(one, &from, &to));
    }
    schemas.extend(inputs);
    let mut paths = Map::new();
    for ((operation, request), responses) in OPERATIONS.iter().zip(requests).zip(answers) {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        let method = operation.method.as_str().to_lowercase();
        path[method] = described(operation, request, responses);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Sterna",
            "summary": "The interface of a host's agent",
            "description": DESCRIPTION,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            "version": env!("CARGO_PKG_VERSION"),
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { CERTIFICATE: { "type": "mutualTLS", "description": WHO } },
        },
    })
}

const CERTIFICATE: &str = "certificate";

const DESCRIPTION: &str = "Over HTTPS on port 7400, and over a unix socket for the host's operator. Whatever fails is \
    answered with an ApiError. Writes carry ids that the caller draws: the same request twice does the same thing once. \
    Fields may be added to answers; readers pass over what they do not know. CONNECT, for which this document has no \
    place, passes a user on to another host (docs/protocol.md, Relays).";

const WHO: &str = "A certificate of the cluster's authority: a user's with a role (each operation names the least one \
    that it needs), or a host's, which may do everything that is not marked x-sterna-hosts: refused.";

/// What the names of schemas end in that are of requests only.
const INPUT: &str = "Input";

fn generator(contract: Contract) -> SchemaGenerator {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.contract = contract;
    settings.into_generator()
}

fn described(operation: &Operation, request: Value, responses: Value) -> Value {
    let mut described = json!({
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": responses,
        "security": [{ CERTIFICATE: [operation.role.to_string()] }],
    });
    if operation.hosts == Hosts::Refused {
        described["x-sterna-hosts"] = json!("refused");
    }
    if let Value::Object(request) = request {
        for (key, value) in request {
            described[key] = value;
        }
    }
    described
}

/// The parts of an operation that are sent.
fn request(operation: &Operation, read: &mut SchemaGenerator) -> Value {
    let mut parameters: Vec<_> = in_path(operation.path).map(path_parameter).collect();
    parameters.extend(operation.query.iter().map(|one| query_parameter(one, read)));
    let mut request = json!({});
    if !parameters.is_empty() {
        request["parameters"] = parameters.into();
    }
    if !matches!(operation.request, Content::Nothing) {
        // No bytes at all are some, too.
        let required = matches!(operation.request, Content::Json(_));
        let content = content(&operation.request, read);
        request["requestBody"] = json!({ "required": required, "content": content });
    }
    request
}

/// The names within braces.
fn in_path(pattern: &str) -> impl Iterator<Item = &str> {
    pattern.split('{').skip(1).filter_map(|rest| rest.split_once('}')).map(|(name, _)| name)
}

fn path_parameter(name: &str) -> Value {
    let schema = match name {
        "id" => json!({ "type": "string", "format": "uuid" }),
        _ => json!({ "type": "string", "minLength": 1 }),
    };
    json!({ "name": name, "in": "path", "required": true, "schema": schema })
}

fn query_parameter(parameter: &Parameter, read: &mut SchemaGenerator) -> Value {
    let schema = (parameter.value.schema)(read);
    let Parameter { name, summary, .. } = parameter;
    json!({ "name": name, "in": "query", "description": summary, "schema": schema })
}

fn responses(operation: &Operation, error: &Value, written: &mut SchemaGenerator) -> Value {
    let mut responses = Map::new();
    for status in operation.statuses {
        let mut response = json!({ "description": "Done." });
        if !matches!(operation.answer, Content::Nothing) {
            response["content"] = content(&operation.answer, written);
        }
        responses.insert(status.to_string(), response);
    }
    for code in operation.errors() {
        let word = json!(code).as_str().unwrap_or_default().to_owned();
        let known = responses.entry(code.status().to_string());
        known
            .and_modify(|known| {
                let others = known["description"].as_str().unwrap_or_default();
                known["description"] = format!("{others}, {word}").into();
            })
            .or_insert_with(|| json!({ "description": word, "content": error }));
    }
    responses.into()
}

fn content(content: &Content, generator: &mut SchemaGenerator) -> Value {
    match content {
        Content::Nothing => json!({}),
        Content::Json(of) => json!({ "application/json": { "schema": (of.schema)(generator) } }),
        // Version 3.1 has no word for a line's type.
        Content::Lines(of) => {
            json!({ "application/x-ndjson": { "schema": {}, "x-line": (of.schema)(generator) } })
        }
        Content::Raw(media) => json!({ *media: {} }),
    }
}

/// Lets fields be added, where a request with a field that is not known is refused.
fn open(schema: &mut Value) {
    match schema {
        Value::Array(values) => values.iter_mut().for_each(open),
        Value::Object(fields) => {
            fields.retain(|name, value| name != "additionalProperties" || *value != json!(false));
            fields.values_mut().for_each(open);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn reference(name: &str) -> String {
    format!("#/components/schemas/{name}")
}

/// Names of schemas that are in both and not the same, also where only one that they refer to is not.
fn differing(inputs: &Map<String, Value>, outputs: &Map<String, Value>) -> BTreeSet<String> {
    let mut differ: BTreeSet<_> = inputs
        .iter()
        .filter(|(name, schema)| outputs.get(*name).is_some_and(|other| other != *schema))
        .map(|(name, _)| name.clone())
        .collect();
    loop {
        let refers = |schema: &Value| differ.iter().any(|name| refers(schema, &reference(name)));
        let more = inputs.iter().filter(|(name, schema)| {
            outputs.contains_key(*name) && !differ.contains(*name) && refers(schema)
        });
        let more: Vec<_> = more.map(|(name, _)| name.clone()).collect();
        if more.is_empty() {
            return differ;
        }
        differ.extend(more);
    }
}

fn refers(schema: &Value, to: &str) -> bool {
    match schema {
        Value::String(text) => text == to,
        Value::Array(values) => values.iter().any(|value| refers(value, to)),
        Value::Object(fields) => fields.values().any(|value| refers(value, to)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn rename(schema: &mut Value, from: &str, to: &str) {
    match schema {
        Value::String(text) if text == from => to.clone_into(text),
        Value::Array(values) => values.iter_mut().for_each(|value| rename(value, from, to)),
        Value::Object(fields) => fields.values_mut().for_each(|value| rename(value, from, to)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_document_that_is_committed_is_that_of_this_code() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        let committed: Value = serde_json::from_str(&committed).unwrap_or_default();
        let same = committed == document();
        assert!(
            same,
            "docs/openapi.json is not of this code: `cargo xtask openapi` writes it anew"
        );
    }

    #[test]
    fn every_schema_that_is_referred_to_is_there_and_every_one_is_referred_to() {
        let document = document();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let mut referred = BTreeSet::new();
        references(&document, &mut referred);
        let there: BTreeSet<_> = schemas.keys().map(|name| reference(name)).collect();
        assert_eq!(referred, there);
    }

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| references(value, found));
            }
            _ => {}
        }
    }

    #[test]
    fn a_request_may_leave_out_what_an_answer_always_has() {
        let document = document();
        let schema = |name: &str| document["components"]["schemas"][name].clone();
        assert_eq!(schema("GuestDefinitionInput")["required"], json!(["name", "memory_bytes"]));
        assert_eq!(schema("GuestDefinitionInput")["additionalProperties"], json!(false));
        let answered = schema("GuestDefinition");
        assert!(answered["required"].as_array().unwrap().contains(&json!("vcpus")), "{answered}");
        assert_eq!(answered.get("additionalProperties"), None);
        let definition = &schema("StartGuest")["properties"]["definition"]["$ref"];
        assert_eq!(*definition, reference("GuestDefinitionInput"));
    }

    #[test]
    fn an_operation_says_who_may_and_how_it_fails() {
        let document = document();
        let begin = &document["paths"]["/v1/guests/{name}/moves"]["post"];
        assert_eq!(begin["security"], json!([{ "certificate": ["operator"] }]));
        assert_eq!(begin["responses"]["409"]["description"], "already-exists, wrong-state");
        let error = reference("ApiError");
        let body = &begin["responses"]["410"]["content"]["application/json"];
        assert_eq!(body["schema"]["$ref"], error);
        assert_eq!(begin["x-sterna-hosts"], Value::Null);
        let invite = &document["paths"]["/v1/invitations"]["post"];
        assert_eq!(invite["x-sterna-hosts"], "refused");
    }
}
