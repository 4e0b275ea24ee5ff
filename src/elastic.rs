//! The Elasticsearch side: reaches the cluster, sends bulk requests, installs what they need.

pub mod assets;
pub mod bulk;
pub mod client;
pub mod dead_letters;
pub mod kibana;
pub mod led;
pub mod lookup;
pub mod rights;
pub mod state;
pub mod work;
