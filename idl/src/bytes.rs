//! A byte array that is copied in one piece: serde writes `[u8; N]` byte by byte, which costs
//! hundreds of instructions on the hot path.

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `N` bytes; on the wire a length and the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes<const N: usize>(pub [u8; N]);

impl<const N: usize> Serialize for Bytes<N> {
    #[inline(always)]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Bytes<N> {
    #[inline(always)]
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Exact<const N: usize>;
        impl<const N: usize> Visitor<'_> for Exact<N> {
            type Value = Bytes<N>;
            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "{N} bytes")
            }
            #[inline(always)]
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes<N>, E> {
                bytes
                    .try_into()
                    .map(Bytes)
                    .map_err(|_| E::invalid_length(bytes.len(), &self))
            }
        }
        deserializer.deserialize_bytes(Exact)
    }
}

/// At most `N` bytes; on the wire a length and the bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece<const N: usize>(heapless::Vec<u8, N>);

impl<const N: usize> Piece<N> {
    /// As many of the first bytes as fit.
    pub fn of(bytes: &[u8]) -> Self {
        let fits = bytes.get(..bytes.len().min(N)).unwrap_or(&[]);
        Piece(heapless::Vec::from_slice(fits).unwrap_or_default())
    }
}

impl<const N: usize> core::ops::Deref for Piece<N> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl<const N: usize> Serialize for Piece<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Piece<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Most<const N: usize>;
        impl<const N: usize> Visitor<'_> for Most<N> {
            type Value = Piece<N>;
            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "at most {N} bytes")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Piece<N>, E> {
                heapless::Vec::from_slice(bytes)
                    .map(Piece)
                    .map_err(|_| E::invalid_length(bytes.len(), &self))
            }
        }
        deserializer.deserialize_bytes(Most)
    }
}
