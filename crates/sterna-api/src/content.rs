//! What is in requests and answers, as the table of operations names it.

use std::fmt;

/// A type that travels as JSON, by which its schema is found.
#[derive(Clone, Copy)]
pub struct Type {
    #[cfg(feature = "schema")]
    pub(crate) schema: fn(&mut schemars::SchemaGenerator) -> schemars::Schema,
}

/// Whatever has a schema.
#[cfg(feature = "schema")]
pub trait Described: schemars::JsonSchema {}
#[cfg(feature = "schema")]
impl<T: schemars::JsonSchema> Described for T {}

/// Whatever has a schema; without schemas, anything.
#[cfg(not(feature = "schema"))]
pub trait Described {}
#[cfg(not(feature = "schema"))]
impl<T> Described for T {}

impl Type {
    #[cfg_attr(
        not(feature = "schema"),
        expect(clippy::extra_unused_type_parameters, reason = "its schema is all that is used")
    )]
    pub(crate) const fn of<T: Described>() -> Self {
        Self {
            #[cfg(feature = "schema")]
            schema: schemars::SchemaGenerator::subschema_for::<T>,
        }
    }
}

impl fmt::Debug for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Type")
    }
}

/// The body of a request or an answer.
#[derive(Clone, Copy, Debug)]
pub enum Content {
    /// None.
    Nothing,
    /// One value as JSON.
    Json(Type),
    /// A value as JSON in each line, for as long as there are any.
    Lines(Type),
    /// Bytes or text of a media type.
    Raw(&'static str),
}

/// A parameter behind a path, which may always be left out.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What it does, and what holds without it.
    pub summary: &'static str,
    #[cfg_attr(not(feature = "schema"), expect(dead_code, reason = "for the document"))]
    pub(crate) value: Type,
}

impl Parameter {
    pub(crate) const fn new<T: Described>(name: &'static str, summary: &'static str) -> Self {
        Self { name, summary, value: Type::of::<T>() }
    }
}
