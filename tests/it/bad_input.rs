//! What a user sees of each mistake and each failure: the whole of it, and the exit code. 2 stands
//! for what the user gave, 1 for what failed.

mod configuration;
mod elasticsearch;
mod state;
mod teleport;
