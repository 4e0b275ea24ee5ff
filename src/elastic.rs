//! The Elasticsearch side.

pub mod assets;
