//! The keys that events have at their top, each with its place among them in byte order.
//!
//! A few hundred names make up all of Teleport's events. So instead of comparing an event's keys
//! with each other, each is looked up once, and its place is marked in a set of bits: read from the
//! lowest to the highest, the set is the sorted event. The table learns keys as they come, up to
//! [`KEYS_MAX`]; what it does not know is sorted by comparing.

use crate::wire::Span;

/// So many keys are learned at most. All of Teleport's event types have about 200 together; the
/// limit keeps whoever makes up keys from filling memory, or from having them learned for ever.
pub(super) const KEYS_MAX: usize = 512;

/// Longer keys are not learned.
const KEY_BYTES_MAX: usize = 32;

/// A key as it is written: `,"` before and `":` behind it.
const TEXT_BYTES: usize = KEY_BYTES_MAX + 4;

/// Places of the hash table: at most a quarter of them is taken, so that most look-ups are one look.
const SLOTS: usize = 4 * KEYS_MAX;

/// One of the keys.
struct Known {
    /// Its first 16 bytes.
    head: u128,
    length: u8,
    text: [u8; TEXT_BYTES],
}

/// The table.
pub(super) struct KnownKeys {
    /// In byte order: a key's place here is its place among the members of an event.
    keys: Vec<Known>,
    /// From a hash to the key's place plus one; 0 where there is none.
    slots: Box<[u16; SLOTS]>,
}

impl Default for KnownKeys {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            slots: Box::new([0; SLOTS]),
        }
    }
}

impl KnownKeys {
    /// The place of the key at `start..end`, if it is known.
    #[inline]
    pub(super) fn place(&self, haystack: &[u8], start: usize, end: usize) -> Option<usize> {
        let length = end - start;
        let head = first_sixteen(haystack, start, end);
        let mut slot = slot(head, length);
        loop {
            let place = usize::from(self.slots[slot]).checked_sub(1)?;
            let known = &self.keys[place];
            if known.head == head
                && usize::from(known.length) == length
                && (length <= 16 || known.key()[16..] == haystack[start + 16..end])
            {
                return Some(place);
            }
            slot = (slot + 1) % SLOTS;
        }
    }

    /// How many keys are known.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Learns a key, which changes the places of others. Not if there is no room, or if it is long,
    /// or holds what has to be escaped or is not ASCII.
    #[cold]
    pub(super) fn learn(&mut self, key: &[u8]) -> bool {
        let is_plain = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
        let Ok(length) = u8::try_from(key.len()) else {
            return false;
        };
        if self.keys.len() == KEYS_MAX || key.len() > KEY_BYTES_MAX || !key.iter().all(is_plain) {
            return false;
        }
        let Err(place) = self.keys.binary_search_by(|known| known.key().cmp(key)) else {
            return true;
        };
        let mut text = [0; TEXT_BYTES];
        text[..2].copy_from_slice(b",\"");
        text[2..2 + key.len()].copy_from_slice(key);
        text[2 + key.len()..4 + key.len()].copy_from_slice(b"\":");
        let known = Known {
            head: first_sixteen(key, 0, key.len()),
            length,
            text,
        };
        self.keys.insert(place, known);
        self.slots.fill(0);
        for (place, known) in (1..).zip(&self.keys) {
            let mut slot = slot(known.head, known.length.into());
            while self.slots[slot] != 0 {
                slot = (slot + 1) % SLOTS;
            }
            self.slots[slot] = place;
        }
        true
    }

    /// Appends the key of this place as `,"key":`.
    #[inline]
    pub(super) fn write(&self, place: usize, out: &mut Vec<u8>) {
        let known = &self.keys[place];
        let begin = out.len();
        // Work of a fixed length is cheaper than that of the right one.
        out.extend_from_slice(&known.text);
        out.truncate(begin + usize::from(known.length) + 4);
    }
}

impl Known {
    fn key(&self) -> &[u8] {
        &self.text[2..2 + usize::from(self.length)]
    }
}

/// The members of an event all of whose keys are known.
pub(super) struct Placed {
    /// A bit for each place in [`KnownKeys`].
    pub(super) present: [u64; KEYS_MAX / 64],
    /// The value at each place, where its bit is set.
    pub(super) values: [Span; KEYS_MAX],
}

impl Placed {
    pub(super) fn clear(&mut self) {
        self.present = [0; _];
    }

    /// The last one counts.
    #[inline]
    pub(super) fn set(&mut self, place: usize, value: Span) {
        self.present[place / 64] |= 1 << (place % 64);
        self.values[place] = value;
    }

    pub(super) fn get(&self, place: usize) -> Option<Span> {
        let is_present = self.present[place / 64] >> (place % 64) & 1 == 1;
        is_present.then(|| self.values[place])
    }
}

impl Default for Placed {
    fn default() -> Self {
        Self {
            present: [0; KEYS_MAX / 64],
            values: [Span::new(0, 0); KEYS_MAX],
        }
    }
}

/// The first eight bytes of the text at `start..end`, big-endian, so that they compare as texts do;
/// zeros behind its end.
#[inline]
pub(super) fn head(haystack: &[u8], start: usize, end: usize) -> u64 {
    let length = end - start;
    match haystack[start..].first_chunk() {
        Some(eight) if length >= 8 => u64::from_be_bytes(*eight),
        Some(_) if length == 0 => 0,
        // Cut off what follows the text.
        Some(eight) => u64::from_be_bytes(*eight) & (u64::MAX << (64 - length * 8)),
        None => {
            let mut eight = [0; 8];
            eight[..length].copy_from_slice(&haystack[start..end]);
            u64::from_be_bytes(eight)
        }
    }
}

/// The first sixteen bytes of the text at `start..end`, zeros behind its end. Without a branch that
/// depends on the length, which nobody can predict.
#[inline(always)]
fn first_sixteen(haystack: &[u8], start: usize, end: usize) -> u128 {
    /// By length: ones where the text is.
    const MASKS: [u128; 17] = {
        let mut masks = [u128::MAX; 17];
        let mut length = 0;
        while length < 16 {
            masks[length] = (1 << (8 * length)) - 1;
            length += 1;
        }
        masks
    };

    let length = (end - start).min(16);
    match haystack[start..].first_chunk() {
        Some(sixteen) => u128::from_le_bytes(*sixteen) & MASKS[length],
        None => {
            let mut sixteen = [0; 16];
            sixteen[..length].copy_from_slice(&haystack[start..start + length]);
            u128::from_le_bytes(sixteen)
        }
    }
}

#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the halves of 16 bytes; a few highest bits"
)]
fn slot(head: u128, length: usize) -> usize {
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let (low, high) = (head as u64, (head >> 64) as u64);
    let mixed = (low ^ high.rotate_left(29) ^ length as u64).wrapping_mul(SPREAD);
    // The highest bits depend on all others.
    (mixed >> (64 - SLOTS.ilog2())) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a sorted list: places are those of the sorted keys, whatever was learned when.
        #[test]
        fn places_are_those_of_the_sorted_keys(
            keys in prop::collection::vec("[a-c_.]{0,20}|[a-z]{0,34}", 1..60),
            strangers in prop::collection::vec("[a-c_.]{0,20}", 0..20),
        ) {
            let mut known = KnownKeys::default();
            let mut learned = std::collections::BTreeSet::new();
            for key in &keys {
                prop_assert_eq!(known.learn(key.as_bytes()), key.len() <= 32);
                if key.len() <= 32 {
                    learned.insert(key.as_bytes());
                }
            }
            for key in keys.iter().chain(&strangers) {
                // Something else follows, as within an event.
                let haystack = format!("..{key}abcdefgh");
                let place = known.place(haystack.as_bytes(), 2, 2 + key.len());
                let expected = learned.iter().position(|other| *other == key.as_bytes());
                prop_assert_eq!(place, expected);
                if let Some(place) = place {
                    let mut out = b"1".to_vec();
                    known.write(place, &mut out);
                    prop_assert_eq!(out, format!("1,\"{key}\":").into_bytes());
                }
            }
        }
    }

    #[test]
    fn what_is_not_plain_is_not_learned_and_there_is_an_end() {
        let mut known = KnownKeys::default();
        for key in [
            &b"a\"b"[..],
            b"a\\b",
            b"a\nb",
            b"\x7f",
            "\u{e9}".as_bytes(),
            &[b'x'; 300],
        ] {
            assert!(!known.learn(key), "{key:?}");
        }
        for n in 0..KEYS_MAX {
            assert!(known.learn(format!("key{n}").as_bytes()));
        }
        assert!(!known.learn(b"one more"));
        for n in 0..KEYS_MAX {
            let key = format!("key{n}");
            assert!(known.place(key.as_bytes(), 0, key.len()).is_some());
        }
    }
}
