//! The fault matrix of Teleport's side, beside the rows on real servers in `e2e::faults` and on
//! single mechanisms in `search` and `export`. After each fault the ids in Elasticsearch are those
//! emitted, less those in gaps and dead letters, each once; and the fault did come.

mod apis;
mod clocks;
mod process;
mod sizes;
mod state;
mod unreadable;
