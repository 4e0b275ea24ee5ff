//! What holds for every answer to a bulk request, be it one or not.

use bytes::Bytes;
use serde_json::{Value, json};

use super::read;
use crate::elastic::client::Answer;
use crate::pipeline::delivery::{Attempt, Outcome};

/// Whatever the answer's status, whoever gave it, and whatever number of operations was asked for:
/// a document is settled only if its own item in the answer's plain reading says so, and an answer
/// that is no success, or has another number of items, settles none.
///
/// # Panics
/// If that is not so.
pub fn bulk_answer(body: &[u8]) {
    let plain: Value = serde_json::from_slice(body).unwrap_or_default();
    let items = plain["items"].as_array().map_or(0, Vec::len);
    // A request has at least one operation.
    for operations in [items, items + 1, items.saturating_sub(1), 1, 2] {
        if operations == 0 {
            continue;
        }
        for is_elasticsearch in [true, false] {
            for status in [200, 201, 301, 400, 401, 403, 404, 408, 413, 429, 500, 503] {
                let answer = Answer {
                    host: String::new(),
                    status,
                    body: Bytes::copy_from_slice(body),
                    is_elasticsearch,
                    retry_after: None,
                };
                check(&answer, operations, &plain);
            }
        }
    }
}

fn check(answer: &Answer, operations: usize, plain: &Value) {
    let is_success = (200..300).contains(&answer.status);
    match read(answer, operations) {
        Attempt::AllCreated => {
            assert!(is_success);
            let created = json!({"create": {"status": 201}});
            assert_eq!(*plain, json!({"items": vec![created; operations]}));
        }
        Attempt::Items(outcomes) => {
            assert!(is_success);
            assert_eq!(outcomes.len(), operations);
            // What nobody asked for is passed over unseen: also a number beyond all bounds, or
            // more depth than a tree may have.
            if !plain.is_null() {
                let items = plain["items"].as_array().expect("items");
                assert_eq!(items.len(), operations);
                for (item, outcome) in items.iter().zip(&outcomes) {
                    assert!(says(&item["create"], outcome), "{item} is no {outcome:?}");
                }
            }
        }
        Attempt::TooLarge(_) => assert!(matches!(answer.status, 400 | 413)),
        Attempt::Transient(fault) => assert!(is_success || !fault.what.is_empty()),
        Attempt::Blocked(fault) => {
            assert!(!is_success || !answer.is_elasticsearch);
            assert!(!fault.mend.is_empty());
        }
    }
}

/// Whether the outcome is what an item's members say.
fn says(item: &Value, outcome: &Outcome) -> bool {
    let Some(status) = item["status"].as_u64() else {
        return false;
    };
    match outcome {
        Outcome::Created => (200..300).contains(&status),
        Outcome::AlreadyThere => status == 409,
        Outcome::Refused(refusal) => {
            let error = &item["error"];
            status == 400
                && refusal.status == 400
                && refusal.error_type == error["type"].as_str().unwrap_or_default()
                && refusal.reason == error["reason"].as_str().unwrap_or_default()
        }
        Outcome::Transient(_) => matches!(status, 408 | 429 | 500..600),
        Outcome::Blocked(_) => !matches!(status, 200..300 | 409),
    }
}
