//! One event's members on their way into the fields of its document.

use super::address::Endpoint;
use super::names::{SOURCES, Source, TARGETS, Target};
use crate::document::json::{Found, Kind, VALUE_SHORT, kind, list_items};
use crate::document::text::{write_number, write_string};
use crate::wire::Span;

/// Longer texts are not repeated: the template has `ignore_above` at as many characters.
const TEXT_BYTES_MAX: usize = 8191;

/// The fields of one event on their way into its document.
pub(super) struct Fields<'a> {
    pub(super) body: &'a [u8],
    pub(super) found: &'a Found,
    pub(super) out: &'a mut Vec<u8>,
}

impl<'a> Fields<'a> {
    /// Writes the field's key, unless the event has a member of that name.
    pub(super) fn begin(&mut self, target: Target) -> bool {
        let place = target as usize;
        if self.found.get(SOURCES.len() + place).is_some() {
            return false;
        }
        self.out.extend_from_slice(b",\"");
        self.out.extend_from_slice(TARGETS[place].as_bytes());
        self.out.extend_from_slice(b"\":");
        true
    }

    pub(super) fn kind(&self, source: Source) -> Option<Kind> {
        kind(self.body, self.found.get(source as usize)?).ok()
    }

    /// The text of a member, if there is something in it.
    pub(super) fn text(&self, source: Source) -> Option<&'a [u8]> {
        match self.kind(source)? {
            Kind::String(text) => {
                let text = text.bytes(self.body);
                (1..=TEXT_BYTES_MAX).contains(&text.len()).then_some(text)
            }
            _ => None,
        }
    }

    /// A list, if there is something in it.
    pub(super) fn list(&self, source: Source) -> Option<Span> {
        match self.kind(source)? {
            Kind::List(list) => {
                let n_bytes = (list.end - list.start) as usize;
                (1..=TEXT_BYTES_MAX).contains(&n_bytes).then_some(list)
            }
            _ => None,
        }
    }

    /// The number of a member that a `long` can hold.
    pub(super) fn whole(&self, source: Source) -> Option<f64> {
        const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

        match self.kind(source)? {
            Kind::Number(number) if number.fract() == 0.0 && number.abs() <= WHOLE_MAX => {
                Some(number)
            }
            _ => None,
        }
    }

    pub(super) fn endpoint(&self, source: Source) -> Option<Endpoint<'a>> {
        self.text(source).map(Endpoint::of)
    }

    /// A value that is JSON already; none if it is empty.
    pub(super) fn constant(&mut self, target: Target, json: &str) {
        if !json.is_empty() && self.begin(target) {
            self.out.extend_from_slice(json.as_bytes());
        }
    }

    pub(super) fn copy_text(&mut self, source: Source, target: Target) {
        if let Some(text) = self.text(source)
            && self.begin(target)
        {
            self.write_text(text);
        }
    }

    pub(super) fn copy_whole(&mut self, source: Source, target: Target) {
        if let Some(number) = self.whole(source)
            && self.begin(target)
        {
            write_number(number, self.out);
        }
    }

    pub(super) fn write_text(&mut self, text: &[u8]) {
        // A fault has been marked when the member itself was written.
        let mut faulty = false;
        write_string::<VALUE_SHORT>(text, 0, text.len(), &mut faulty, self.out);
    }

    pub(super) fn write_endpoint(&mut self, endpoint: Option<Endpoint<'_>>, targets: [Target; 3]) {
        let Some(Endpoint { address, ip, port }) = endpoint else {
            return;
        };
        let [address_target, ip_target, port_target] = targets;
        if self.begin(address_target) {
            self.write_text(address);
        }
        if let Some(ip) = ip
            && self.begin(ip_target)
        {
            self.write_text(ip);
        }
        if let Some(port) = port
            && self.begin(port_target)
        {
            write_number(port.into(), self.out);
        }
    }

    /// Each of the texts once.
    pub(super) fn write_related<const N: usize>(
        &mut self,
        target: Target,
        texts: [Option<&[u8]>; N],
    ) {
        if texts.iter().all(Option::is_none) || !self.begin(target) {
            return;
        }
        let mut separator = b'[';
        for (n, text) in texts.iter().enumerate() {
            if let Some(text) = text
                && !texts[..n].contains(&Some(text))
            {
                self.out.push(separator);
                self.write_text(text);
                separator = b',';
            }
        }
        self.out.push(b']');
    }

    /// The texts of a list, one after the other.
    pub(super) fn write_texts(&mut self, list: Span, separator: &[u8]) {
        let mut is_first = true;
        for item in list_items(self.body, list) {
            if let Ok(Kind::String(text)) = kind(self.body, item) {
                if !is_first {
                    self.out.extend_from_slice(separator);
                }
                is_first = false;
                self.write_text(text.bytes(self.body));
            }
        }
    }

    /// The texts of a list as one, with spaces between them.
    pub(super) fn write_joined(&mut self, list: Span) {
        let begin = self.out.len();
        self.out.push(b'"');
        for item in list_items(self.body, list) {
            if let Ok(Kind::String(text)) = kind(self.body, item) {
                // The quote at the end becomes the space between, the one at the beginning goes.
                let join = self.out.len();
                self.write_text(text.bytes(self.body));
                self.out.remove(join);
                if let Some(last) = self.out.last_mut() {
                    *last = b' ';
                }
            }
        }
        if self.out.len() > begin + 1 {
            self.out.pop();
        }
        self.out.push(b'"');
    }
}
