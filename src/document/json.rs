//! Turns the wire bytes of a `google.protobuf.Struct` into JSON text: the program's hot loop.
//!
//! There is no tree in between. The event's own members are put in order by a table of known keys
//! ([`KnownKeys`]). Where that does not know one, and within the event, the members of one object
//! at a time are noted as offsets into the body, sorted by key, and written; the members of an
//! object inside lie above them on the same stack while it is written. The stack keeps its memory,
//! at most 12 bytes for each byte of the largest body so far, so a body costs no allocation once
//! the largest has passed.
//!
//! How a body is read where protobuf leaves a choice or it is odd:
//! - of several members with one key the last on the wire counts;
//! - of several values within a member, or kinds within a value, the last counts; they are not
//!   merged;
//! - a member without a key has the key `""`, one without a value, or a value of no kind, is null;
//! - fields that the three message types do not know are stepped over by their wire type;
//! - what is not written (an earlier duplicate, the inside of what is too deep) is not looked at.

mod found;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

pub(super) use self::found::Found;
use super::keys::{KnownKeys, Placed, head};
use super::text::{write_number, write_string};
use super::{DocumentError, Marks};

use crate::wire::{FIXED64, LENGTH, Malformed, Reader, Span, VARINT, tag};

/// So many objects and lists may lie in each other, the event itself being the first. Enough for
/// any event there is (many protobuf decoders stop at 100 messages in each other, which is 33
/// objects) and little for any stack.
pub(super) const LEVELS_MAX: usize = 64;

/// The key of the member that names an event's marks.
pub(super) const MARKS_KEY: &[u8] = b"event_indexer.marks";

/// How long nearly all keys are at most, and nearly all texts: ids have 36 bytes, addresses and
/// times fewer. More would cost each of them, less would send ids down the slow path.
const KEY_SHORT: usize = 32;
pub(super) const VALUE_SHORT: usize = 48;

/// One member of an object: where its key and its value lie.
#[derive(Clone, Copy)]
struct Member {
    /// The key's first eight bytes, zero behind its end, such that they compare as bytes do.
    prefix: u64,
    /// Offsets within the body, or beyond its end: within the mended keys.
    key: Span,
    /// The wire bytes of a `google.protobuf.Value`. The beginning grows with the place on the
    /// wire, also where there is no value.
    value: Span,
}

/// The fields of a member.
const KEY: u32 = tag(1, LENGTH);
const VALUE: u32 = tag(2, LENGTH);

pub(super) enum Kind {
    Null,
    Number(f64),
    Bool(bool),
    String(Span),
    Object(Span),
    List(Span),
}

/// Turns the wire bytes of a `google.protobuf.Struct` into a JSON object with sorted keys.
#[derive(Default)]
pub struct Transcoder {
    known: KnownKeys,
    placed: Box<Placed>,
    /// The event's own members are in `placed`, not among `members`.
    is_placed: bool,
    members: Vec<Member>,
    /// Whether keys are looked at before they are sorted. At first they are not, and only if one
    /// turns out to be no valid UTF-8 when it is written, everything is done once more like this.
    mends_keys: bool,
    /// The keys that were no valid UTF-8, mended.
    mended_keys: Vec<u8>,
    /// Whether a key was written that ought to have been mended first.
    has_faulty_key: bool,
    marks: Marks,
}

impl Transcoder {
    /// Appends a Struct as JSON text.
    ///
    /// # Errors
    /// If `body` is no Struct; `out` is as before.
    pub fn transcode(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<Marks, DocumentError> {
        let start = out.len();
        let written = self.read(body).and_then(|()| self.write(body, out));
        if written.is_err() {
            out.truncate(start);
        }
        Ok(written?)
    }

    /// Takes in the members of the event itself, sorted; what was taken in before is forgotten.
    pub(super) fn read(&mut self, body: &[u8]) -> Result<(), Malformed> {
        self.mends_keys = false;
        self.is_placed = self.place(body)?;
        if self.is_placed {
            self.members.clear();
            self.has_faulty_key = false;
            self.marks = Marks::default();
            return Ok(());
        }
        self.read_again(body)
    }

    /// Finds the place of each of the event's members, if all of their keys are known.
    fn place(&mut self, body: &[u8]) -> Result<bool, Malformed> {
        let event = Span::of(body)?;
        'anew: loop {
            self.placed.clear();
            let mut fields = Reader::new(body, event);
            while let Some((key, value)) = next_member(body, &mut fields)? {
                let (start, end) = (key.start as usize, key.end as usize);
                match self.known.place(body, start, end) {
                    Some(place) => self.placed.set(place, value),
                    // Others have changed their places.
                    None if self.known.learn(key.bytes(body)) => continue 'anew,
                    None => return Ok(false),
                }
            }
            return Ok(true);
        }
    }

    fn read_again(&mut self, body: &[u8]) -> Result<(), Malformed> {
        self.members.clear();
        self.mended_keys.clear();
        self.has_faulty_key = false;
        self.marks = Marks::default();
        self.collect(body, Span::of(body)?)
    }

    /// The text of one of the event's own members, if it has it and it is a string. The key is of
    /// at most eight bytes.
    pub(super) fn string<'a>(&self, body: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
        let value = if self.is_placed {
            self.placed.get(self.known.place(key, 0, key.len())?)?
        } else {
            let prefix = head(key, 0, key.len());
            let member = self.members.iter().rev().find(|member| {
                member.prefix == prefix && (member.key.end - member.key.start) as usize == key.len()
            });
            member?.value
        };
        match kind(body, value) {
            Ok(Kind::String(text)) => Some(text.bytes(body)),
            _ => None,
        }
    }

    /// Whether the event itself has a member of our own marks' name.
    pub(super) fn has_marks_member(&self, body: &[u8]) -> bool {
        if self.is_placed {
            let place = self.known.place(MARKS_KEY, 0, MARKS_KEY.len());
            return place.is_some_and(|place| self.placed.get(place).is_some());
        }
        self.members
            .iter()
            .any(|member| self.key(body, member) == MARKS_KEY)
    }

    /// Appends the event that was read, without a line end. `body` is the one given to `read`. After
    /// an error `out` holds anything behind what it held before.
    pub(super) fn write(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<Marks, Malformed> {
        let start = out.len();
        let written = if self.is_placed {
            self.write_placed(body, out)
        } else {
            self.write_object(body, 0, 1, out)
        };
        // What is malformed may turn out to be an earlier member of a key that was mended.
        if self.has_faulty_key || written.is_err() {
            self.is_placed = false;
            out.truncate(start);
            self.mends_keys = true;
            self.read_again(body)?;
            self.write_object(body, 0, 1, out)?;
        }
        Ok(self.marks)
    }

    fn key<'a>(&'a self, body: &'a [u8], member: &Member) -> &'a [u8] {
        key(body, &self.mended_keys, member)
    }

    /// Puts an object's members on the stack and sorts them.
    fn collect(&mut self, body: &[u8], object: Span) -> Result<(), Malformed> {
        let base = self.members.len();
        let mut fields = Reader::new(body, object);
        while let Some((mut key, value)) = next_member(body, &mut fields)? {
            let mut prefix = head(body, key.start as usize, key.end as usize);
            if self.mends_keys && std::str::from_utf8(key.bytes(body)).is_err() {
                (key, prefix) = self.mend(body, key);
            }
            self.members.push(Member { prefix, key, value });
        }
        let mended_keys = &self.mended_keys;
        self.members[base..].sort_unstable_by(|left, right| {
            left.prefix
                .cmp(&right.prefix)
                .then_with(|| key(body, mended_keys, left).cmp(key(body, mended_keys, right)))
                .then(left.value.start.cmp(&right.value.start))
        });
        Ok(())
    }

    /// Replaces what is no UTF-8 in a key. It happens before sorting, so that keys that become
    /// equal are found to be, as a document may not have two.
    #[cold]
    fn mend(&mut self, body: &[u8], key: Span) -> (Span, u64) {
        self.marks.invalid_utf8 = true;
        let start = self.mended_keys.len();
        let mended = String::from_utf8_lossy(key.bytes(body));
        self.mended_keys.extend_from_slice(mended.as_bytes());
        let end = self.mended_keys.len();
        let prefix = head(&self.mended_keys, start, end);
        (Span::new(body.len() + start, body.len() + end), prefix)
    }

    /// Writes the event whose members all have places.
    fn write_placed(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
        let begin = out.len();
        for word in 0..self.placed.present.len() {
            let mut left = self.placed.present[word];
            while left != 0 {
                let place = word * 64 + left.trailing_zeros() as usize;
                left &= left - 1;
                self.known.write(place, out);
                self.write_value(body, self.placed.values[place], 1, out)?;
            }
        }
        match out.get_mut(begin) {
            Some(first_comma) => *first_comma = b'{',
            None => out.push(b'{'),
        }
        out.push(b'}');
        Ok(())
    }

    /// Writes the members from `base` on and takes them off the stack.
    fn write_object(
        &mut self,
        body: &[u8],
        base: usize,
        level: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Malformed> {
        out.push(b'{');
        let end = self.members.len();
        let mut is_first = true;
        for index in base..end {
            let member = self.members[index];
            if index + 1 < end {
                let next = &self.members[index + 1];
                if next.prefix == member.prefix && self.key(body, next) == self.key(body, &member) {
                    continue;
                }
            }
            if !is_first {
                out.push(b',');
            }
            is_first = false;
            self.write_key(body, &member, out);
            out.push(b':');
            self.write_value(body, member.value, level, out)?;
        }
        self.members.truncate(base);
        out.push(b'}');
        Ok(())
    }

    #[inline]
    fn write_key(&mut self, body: &[u8], member: &Member, out: &mut Vec<u8>) {
        let (start, end) = (member.key.start as usize, member.key.end as usize);
        let faulty = &mut self.has_faulty_key;
        if end <= body.len() {
            return write_string::<KEY_SHORT>(body, start, end, faulty, out);
        }
        let (start, end) = (start - body.len(), end - body.len());
        write_string::<KEY_SHORT>(&self.mended_keys, start, end, faulty, out);
    }

    /// Writes a value that lies in an object or list of this level.
    #[inline]
    fn write_value(
        &mut self,
        body: &[u8],
        value: Span,
        level: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Malformed> {
        if let Some((start, end)) = short_string(body, value) {
            let faulty = &mut self.marks.invalid_utf8;
            write_string::<VALUE_SHORT>(body, start, end, faulty, out);
            return Ok(());
        }
        self.write_other(body, value, level, out)
    }

    fn write_other(
        &mut self,
        body: &[u8],
        value: Span,
        level: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Malformed> {
        match kind(body, value)? {
            Kind::Null => out.extend_from_slice(b"null"),
            Kind::Bool(true) => out.extend_from_slice(b"true"),
            Kind::Bool(false) => out.extend_from_slice(b"false"),
            Kind::Number(number) => write_number(number, out),
            Kind::String(text) => {
                let (start, end) = (text.start as usize, text.end as usize);
                let faulty = &mut self.marks.invalid_utf8;
                write_string::<VALUE_SHORT>(body, start, end, faulty, out);
            }
            Kind::Object(_) | Kind::List(_) if level == LEVELS_MAX => {
                self.marks.too_deep = true;
                write_wire(value.bytes(body), out);
            }
            Kind::Object(object) => {
                let base = self.members.len();
                self.collect(body, object)?;
                self.write_object(body, base, level + 1, out)?;
            }
            Kind::List(list) => self.write_list(body, list, level + 1, out)?,
        }
        Ok(())
    }

    fn write_list(
        &mut self,
        body: &[u8],
        list: Span,
        level: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Malformed> {
        const VALUES: u32 = tag(1, LENGTH);

        out.push(b'[');
        let mut is_first = true;
        let mut values = Reader::new(body, list);
        while let Some(found) = values.next_tag()? {
            if found != VALUES {
                values.skip_unknown(found, 1)?;
                continue;
            }
            if !is_first {
                out.push(b',');
            }
            is_first = false;
            let value = values.length_delimited()?;
            self.write_value(body, value, level, out)?;
        }
        out.push(b']');
        Ok(())
    }
}

fn key<'a>(body: &'a [u8], mended_keys: &'a [u8], member: &Member) -> &'a [u8] {
    let (start, end) = (member.key.start as usize, member.key.end as usize);
    if end <= body.len() {
        &body[start..end]
    } else {
        &mended_keys[start - body.len()..end - body.len()]
    }
}

/// Key and value of an object's next member.
#[inline(always)]
pub(super) fn next_member(
    body: &[u8],
    fields: &mut Reader<'_>,
) -> Result<Option<(Span, Span)>, Malformed> {
    const FIELDS: u32 = tag(1, LENGTH);

    while let Some(found) = fields.next_tag()? {
        if found != FIELDS {
            fields.skip_unknown(found, 1)?;
            continue;
        }
        let entry = fields.length_delimited()?;
        return match usual_entry(body, entry) {
            Some(parts) => Ok(Some(parts)),
            None => any_entry(body, entry).map(Some),
        };
    }
    Ok(None)
}

/// Key and value of a member that is written as every encoder writes it, each part shorter than
/// 128 bytes: tag, length, key, tag, length, value. Nearly all are, and this way the reader has
/// one branch for all that [`any_entry`] asks step by step.
#[inline(always)]
fn usual_entry(body: &[u8], entry: Span) -> Option<(Span, Span)> {
    let (start, end) = (entry.start as usize, entry.end as usize);
    let &[key_tag, key_bytes] = body.get(start..end)?.first_chunk()?;
    let key_end = start + 2 + usize::from(key_bytes);
    let &[value_tag, value_bytes] = body.get(key_end..end)?.first_chunk()?;
    let value_end = key_end + 2 + usize::from(value_bytes);
    let is_usual = u32::from(key_tag) == KEY
        && u32::from(value_tag) == VALUE
        && (key_bytes | value_bytes) < 0x80
        && value_end == end;
    is_usual.then(|| {
        let key = Span::new(start + 2, key_end);
        (key, Span::new(key_end + 2, end))
    })
}

/// Key and value of a member, however it is written.
fn any_entry(body: &[u8], entry: Span) -> Result<(Span, Span), Malformed> {
    let end = Span::new(entry.end as usize, entry.end as usize);
    let (mut key, mut value) = (end, end);
    let mut parts = Reader::new(body, entry);
    while let Some(found) = parts.next_tag()? {
        match found {
            KEY => key = parts.length_delimited()?,
            VALUE => value = parts.length_delimited()?,
            _ => parts.skip_unknown(found, 2)?,
        }
    }
    Ok((key, value))
}

/// The values of a list, up to one that is malformed.
pub(super) fn list_items(body: &[u8], list: Span) -> impl Iterator<Item = Span> {
    const VALUES: u32 = tag(1, LENGTH);

    let mut values = Reader::new(body, list);
    std::iter::from_fn(move || {
        loop {
            match values.next_tag().ok()?? {
                VALUES => return values.length_delimited().ok(),
                other => values.skip_unknown(other, 1).ok()?,
            }
        }
    })
}

const STRING: u32 = tag(3, LENGTH);

/// Where the text is if the value is a string alone, shorter than 128 bytes: more than half of all
/// values are. Not a [`Kind`], since that would go through memory.
#[inline]
fn short_string(body: &[u8], value: Span) -> Option<(usize, usize)> {
    let (start, end) = (value.start as usize, value.end as usize);
    let &[tag, n_bytes] = body[start..end].first_chunk()?;
    let is_short = u32::from(tag) == STRING && n_bytes < 0x80;
    (is_short && start + 2 + usize::from(n_bytes) == end).then_some((start + 2, end))
}

pub(super) fn kind(body: &[u8], value: Span) -> Result<Kind, Malformed> {
    const NULL: u32 = tag(1, VARINT);
    const NUMBER: u32 = tag(2, FIXED64);
    const BOOL: u32 = tag(4, VARINT);
    const OBJECT: u32 = tag(5, LENGTH);
    const LIST: u32 = tag(6, LENGTH);

    let mut kind = Kind::Null;
    let mut fields = Reader::new(body, value);
    while let Some(found) = fields.next_tag()? {
        kind = match found {
            STRING => Kind::String(fields.length_delimited()?),
            NUMBER => Kind::Number(fields.double()?),
            BOOL => Kind::Bool(fields.varint()? != 0),
            OBJECT => Kind::Object(fields.length_delimited()?),
            LIST => Kind::List(fields.length_delimited()?),
            NULL => {
                fields.varint()?;
                Kind::Null
            }
            _ => {
                fields.skip_unknown(found, 6)?;
                continue;
            }
        };
    }
    Ok(kind)
}

/// Writes a value as its protobuf bytes, so that nothing of it is lost.
#[cold]
fn write_wire(value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"\"base64:");
    out.extend_from_slice(STANDARD.encode(value).as_bytes());
    out.push(b'"');
}
