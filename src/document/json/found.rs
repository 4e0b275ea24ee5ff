//! Members of an event that are looked for by their names.

use std::collections::HashMap;

use super::Transcoder;
use crate::wire::Span;

/// Where the members of some names lie in the event that was read, by their numbers among the names.
pub(in crate::document) struct Found {
    numbers: HashMap<&'static [u8], usize>,
    /// The places of those names that are known keys, with their numbers.
    places: Vec<(usize, usize)>,
    /// How many keys were known then: with each new one others change their places.
    n_known: usize,
    values: Vec<Option<Span>>,
}

impl Found {
    /// For these names, numbered from one list to the next.
    pub(in crate::document) fn of(names: &[&[&'static str]]) -> Self {
        let names = names.iter().flat_map(|names| names.iter());
        let numbers: HashMap<_, _> = names.map(|name| name.as_bytes()).zip(0..).collect();
        Self {
            places: Vec::new(),
            n_known: 0,
            values: vec![None; numbers.len()],
            numbers,
        }
    }

    /// The value of the member with the name of this number.
    #[inline]
    pub(in crate::document) fn get(&self, number: usize) -> Option<Span> {
        self.values[number]
    }
}

impl Transcoder {
    /// Looks for members of the event itself by their names.
    pub(in crate::document) fn find(&self, body: &[u8], found: &mut Found) {
        found.values.fill(None);
        if !self.is_placed {
            // Of several with one key the last is met last.
            for member in &self.members {
                if let Some(number) = found.numbers.get(self.key(body, member)) {
                    found.values[*number] = Some(member.value);
                }
            }
            return;
        }
        if found.n_known != self.known.len() {
            found.n_known = self.known.len();
            let places = found.numbers.iter().filter_map(|(name, number)| {
                let place = self.known.place(name, 0, name.len())?;
                Some((place, *number))
            });
            found.places = places.collect();
        }
        for (place, number) in &found.places {
            found.values[*number] = self.placed.get(*place);
        }
    }
}
