//! As much of the protobuf wire format as audit events need: where the parts of a message are,
//! without copying any of it.

/// What is wrong with a body and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    /// Byte offset within the body.
    pub(crate) offset: usize,
    pub(crate) what: &'static str,
}

type Result<T> = std::result::Result<T, Malformed>;

/// A piece of a body by its byte offsets. Offsets instead of slices let the buffers that hold them
/// outlive one event, and 32 bits keep what is sorted small.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

/// No body is longer than this, so that offsets, and those of mended keys counted on behind the
/// body, fit 32 bits. A gRPC message this long would never have been received.
pub(crate) const BODY_BYTES_MAX: usize = 1 << 30;

impl Span {
    /// The piece from `start` to `end`, both at most 4 × [`BODY_BYTES_MAX`].
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the longest body is checked before any span is made"
    )]
    pub(crate) fn new(start: usize, end: usize) -> Self {
        Self {
            start: start as u32,
            end: end as u32,
        }
    }

    /// The whole of a body.
    pub(crate) fn of(body: &[u8]) -> Result<Self> {
        if body.len() > BODY_BYTES_MAX {
            return Err(Malformed {
                offset: BODY_BYTES_MAX,
                what: "longer than 1 GiB",
            });
        }
        Ok(Self::new(0, body.len()))
    }

    pub(crate) fn bytes(self, body: &[u8]) -> &[u8] {
        &body[self.start as usize..self.end as usize]
    }
}

/// The wire types in the lowest three bits of a tag.
pub(crate) const VARINT: u32 = 0;
pub(crate) const FIXED64: u32 = 1;
pub(crate) const LENGTH: u32 = 2;
const FIXED32: u32 = 5;

/// The tag of a field: its number and its wire type.
pub(crate) const fn tag(field: u32, wire_type: u32) -> u32 {
    field << 3 | wire_type
}

/// Reads the fields of one message.
pub(crate) struct Reader<'a> {
    /// From the body's beginning to the message's end: positions are offsets within the body.
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    #[inline]
    pub(crate) fn new(body: &'a [u8], message: Span) -> Self {
        Self {
            bytes: &body[..message.end as usize],
            position: message.start as usize,
        }
    }

    /// The next field's tag, or `None` at the message's end.
    #[inline]
    pub(crate) fn next_tag(&mut self) -> Result<Option<u32>> {
        match self.bytes.get(self.position) {
            None => Ok(None),
            // One byte holds every field number up to 15.
            Some(&byte) if (8..0x80).contains(&byte) => {
                self.position += 1;
                Ok(Some(u32::from(byte)))
            }
            Some(_) => self.long_tag().map(Some),
        }
    }

    #[cold]
    fn long_tag(&mut self) -> Result<u32> {
        let offset = self.position;
        let what = "impossible field number";
        let tag = u32::try_from(self.varint()?).map_err(|_| Malformed { offset, what })?;
        if tag >> 3 == 0 {
            return Err(Malformed { offset, what });
        }
        Ok(tag)
    }

    #[inline]
    pub(crate) fn varint(&mut self) -> Result<u64> {
        match self.bytes.get(self.position) {
            Some(&byte) if byte < 0x80 => {
                self.position += 1;
                Ok(u64::from(byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64> {
        let offset = self.position;
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let Some(&byte) = self.bytes.get(self.position) else {
                return Err(self.truncated());
            };
            if shift == 63 && byte > 1 {
                break;
            }
            self.position += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed {
            offset,
            what: "varint of more than 64 bits",
        })
    }

    /// A length and as many bytes.
    #[inline(always)]
    pub(crate) fn length_delimited(&mut self) -> Result<Span> {
        let length = self.varint()?;
        let start = self.position;
        match usize::try_from(length) {
            Ok(length) if length <= self.bytes.len() - start => {
                self.position = start + length;
                Ok(Span::new(start, self.position))
            }
            _ => Err(Malformed {
                offset: start,
                what: "length beyond the end",
            }),
        }
    }

    #[inline]
    pub(crate) fn double(&mut self) -> Result<f64> {
        let Some(bytes) = self.bytes[self.position..].first_chunk() else {
            return Err(self.truncated());
        };
        self.position += 8;
        Ok(f64::from_le_bytes(*bytes))
    }

    /// Steps over the field whose tag was just read: one that the message's type does not know.
    #[cold]
    pub(crate) fn skip_unknown(&mut self, unknown: u32, known_fields: u32) -> Result<()> {
        let offset = self.position;
        if unknown >> 3 <= known_fields {
            return Err(Malformed {
                offset,
                what: "known field of another wire type",
            });
        }
        let n_bytes = match unknown & 7 {
            VARINT => return self.varint().map(drop),
            LENGTH => return self.length_delimited().map(drop),
            FIXED64 => 8,
            FIXED32 => 4,
            3 | 4 => {
                return Err(Malformed {
                    offset,
                    what: "group",
                });
            }
            _ => {
                return Err(Malformed {
                    offset,
                    what: "unknown wire type",
                });
            }
        };
        if self.bytes.len() - self.position < n_bytes {
            return Err(self.truncated());
        }
        self.position += n_bytes;
        Ok(())
    }

    #[cold]
    fn truncated(&self) -> Malformed {
        Malformed {
            offset: self.bytes.len(),
            what: "truncated field",
        }
    }
}
