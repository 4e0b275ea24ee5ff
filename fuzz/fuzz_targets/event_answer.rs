#![no_main]

use libfuzzer_sys::fuzz_target;
use teleport_event_indexer::fuzzing;

fuzz_target!(|data: &[u8]| fuzzing::event_answer(data));
