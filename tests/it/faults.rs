//! The fault matrix of Teleport's side, beside the rows on real servers in `e2e::faults` and on
//! single mechanisms in `search` and `export`. After each fault the ids in Elasticsearch are those
//! emitted, less those in gaps and dead letters, each once; and the fault did come.
//!
//! | what goes wrong | provoked by |
//! |---|---|
//! | connection reset or closed every so many events | `e2e::faults` rows `reset`, `closed`, `broken`; `export::a_broken_stream_goes_on_at_its_cursor_and_begins_anew_where_that_is_refused` |
//! | server away, for more than a minute | [`away`]; for seconds in `e2e::faults` row `restart` |
//! | ResourceExhausted | `e2e::faults` rows `exhausted`; `unreadable::a_server_that_fails_at_random_or_for_a_while_makes_no_gap` |
//! | slow answers | `e2e::faults` rows `restart`; `e2e::a_slow_stream_is_stored_as_it_comes_and_left_when_asked_to_end` |
//! | cursor or key no longer accepted | `e2e::faults` rows `cursor`, `key`; `search::a_key_is_only_a_hint`, `search::a_key_refused_once_costs_no_more_than_its_second` |
//! | key that yields zero events for ever | `search::a_key_is_only_a_hint`, `Forgotten`; keys are never stored |
//! | zero events with an empty key, or a hard error, at an oversized event | [`unreadable`], by search and by export, at rest and while following |
//! | failures and empty answers at random | `unreadable::an_unsteady_server_makes_no_gap_and_none_is_left_out`; `e2e::faults` row `empty` |
//! | same event twice over a page border | `e2e::faults` rows `border` |
//! | events without id | every log of `e2e` |
//! | vanished chunk | `export::a_chunk_that_vanished_becomes_a_gap_and_the_rest_is_read` |
//! | chunks of one event | `export::single_events_empty_days_bounds_and_filters` |
//! | chunks late for past days | `export::late_chunks_are_found_behind_the_position`, `e2e::live_and_late_chunks_are_exported_within_a_few_polls` |
//! | late events with an older time | `search::following_finds_what_comes_now_late_and_early`, `e2e::live_and_late_events_are_found_by_search_within_a_few_polls` |
//! | search becomes export, and back | [`apis`], `export::a_server_may_lose_the_export_in_mid_run_and_have_it_again` |
//! | server time ahead or behind | [`clocks`], `process::a_clock_that_jumps_a_day_forward_and_back_loses_nothing` |
//! | events of 4 and of 20 MiB | [`sizes`] |
//! | bytes that are no Struct | `outcomes::events_that_make_no_document_are_kept_as_they_came_and_the_rest_goes_on`, `dead_letters::the_gap_of_an_event_that_made_no_document_closes_with_its_letter` |

mod apis;
mod away;
mod clocks;
mod process;
mod sizes;
mod state;
mod unreadable;
