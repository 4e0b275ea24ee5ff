//! The Elasticsearch side: reaches the cluster, sends bulk requests, installs what they need.

pub mod assets;
pub mod bulk;
pub mod client;
pub mod kibana;
pub mod lookup;
pub mod rights;
pub mod work;
