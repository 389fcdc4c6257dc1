//! Condition types and reasons, and the one way to set a condition.

use schemars::{Schema, SchemaGenerator, json_schema};

/// The standard condition list: a map by `type`, so that several field managers can own their own conditions.
pub(crate) fn conditions_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": {
                    "type": "string",
                    "description": "What the condition speaks of.",
                    "minLength": 1,
                    "maxLength": 316,
                    "pattern": r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"
                },
                "status": { "type": "string", "description": "Whether it holds.", "enum": ["True", "False", "Unknown"] },
                "observedGeneration": {
                    "type": "integer",
                    "format": "int64",
                    "description": "metadata.generation that the condition speaks of.",
                    "minimum": 0
                },
                "lastTransitionTime": { "type": "string", "format": "date-time", "description": "When status last changed." },
                "reason": {
                    "type": "string",
                    "description": "Why, in one documented CamelCase word.",
                    "minLength": 1,
                    "maxLength": 1024,
                    "pattern": r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"
                },
                "message": { "type": "string", "description": "Why, for people.", "maxLength": 32768 }
            }
        }
    })
}
