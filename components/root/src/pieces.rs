//! Device memory, lent in frames by address: which piece of what is left a frame is cut out of, and
//! which frames were made before. Pure; who cuts is root's binary.

use alloc::vec::Vec;

use sdk::abi::FRAME;

/// Frames that one memory can be cut in at most: the core counts them in 32 bits.
const MOST: u64 = u32::MAX as u64;

/// Device memory that nothing was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<H> {
    /// Physical address.
    pub base: u64,
    /// Frames of 4 KiB.
    pub frames: u64,
    /// What it is cut by.
    pub handle: H,
}

/// A frame that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Made<F> {
    base: u64,
    order: u8,
    frame: F,
}

/// All device memory.
#[derive(Debug)]
pub struct Pieces<H, F> {
    free: Vec<Piece<H>>,
    made: Vec<Made<F>>,
}

impl<H, F> Default for Pieces<H, F> {
    fn default() -> Self {
        Pieces {
            free: Vec::new(),
            made: Vec::new(),
        }
    }
}

/// Why there is no such frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceError {
    /// Not all of it is device memory.
    Nowhere,
    /// No size of frames, or the address is no multiple of it.
    Misaligned,
    /// A part of it was made in another size.
    OtherSize,
}

/// How a frame comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut<F> {
    /// It was made before.
    Known(F),
    /// Out of piece number `piece`: so many frames of 4 KiB before it, and so many after.
    New {
        /// Which piece.
        piece: usize,
        /// Before.
        before: u64,
        /// After.
        after: u64,
    },
}

impl<H: Copy, F: Copy> Pieces<H, F> {
    /// Adds memory.
    pub fn add(&mut self, piece: Piece<H>) {
        if piece.frames > 0 {
            self.free.push(piece);
        }
    }

    /// The piece of this number.
    pub fn piece(&self, number: usize) -> Option<Piece<H>> {
        self.free.get(number).copied()
    }

    /// Where the frame of 2^`order` bytes at `address` comes from.
    pub fn find(&self, address: u64, order: u8) -> Result<Cut<F>, PieceError> {
        if !matches!(order, 12 | 21) || !address.is_multiple_of(1 << order) {
            return Err(PieceError::Misaligned);
        }
        let end = address.checked_add(1 << order).ok_or(PieceError::Nowhere)?;
        for made in &self.made {
            if made.base == address && made.order == order {
                return Ok(Cut::Known(made.frame));
            }
            if made.base < end && address < made.base + (1 << made.order) {
                return Err(PieceError::OtherSize);
            }
        }
        let inside = |piece: &Piece<H>| {
            piece.base <= address && (end - piece.base).div_ceil(FRAME) <= piece.frames.min(MOST)
        };
        let piece = self.free.iter().position(inside);
        let piece = piece.ok_or(PieceError::Nowhere)?;
        let (base, frames) = (self.free[piece].base, self.free[piece].frames.min(MOST));
        Ok(Cut::New {
            piece,
            before: (address - base) / FRAME,
            after: frames - (end - base) / FRAME,
        })
    }

    /// The frame at `address` was cut out of a piece, as [`Pieces::find`] said: what was left before
    /// and after it takes the piece's place.
    pub fn cut(
        &mut self,
        piece: usize,
        (address, order): (u64, u8),
        frame: F,
        before: Option<H>,
        after: Option<H>,
    ) {
        let Ok(Cut::New {
            piece: found,
            before: first,
            after: last,
        }) = self.find(address, order)
        else {
            return;
        };
        if found != piece {
            return;
        }
        let base = self.free.swap_remove(piece).base;
        if let Some(handle) = before {
            self.add(Piece {
                base,
                frames: first,
                handle,
            });
        }
        if let Some(handle) = after {
            self.add(Piece {
                base: address + (1 << order),
                frames: last,
                handle,
            });
        }
        self.made.push(Made {
            base: address,
            order,
            frame,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn memory() -> Pieces<u32, u32> {
        let mut pieces = Pieces::default();
        for (base, frames, handle) in [(0xa_0000, 96, 1), (0x8000_0000, 1 << 19, 2)] {
            pieces.add(Piece {
                base,
                frames,
                handle,
            });
        }
        pieces
    }

    /// Cuts as root does; handles are new numbers.
    fn frame(
        pieces: &mut Pieces<u32, u32>,
        next: &mut u32,
        address: u64,
        order: u8,
    ) -> Result<u32, PieceError> {
        match pieces.find(address, order)? {
            Cut::Known(frame) => Ok(frame),
            Cut::New {
                piece,
                before,
                after,
            } => {
                let mut make = |frames: u64| {
                    *next += 1;
                    (frames > 0).then_some(*next)
                };
                let (first, last, frame) = (make(before), make(after), make(1).unwrap_or(0));
                pieces.cut(piece, (address, order), frame, first, last);
                Ok(frame)
            }
        }
    }

    #[test]
    fn the_same_address_is_the_same_frame() {
        let (mut pieces, mut next) = (memory(), 10);
        let first = frame(&mut pieces, &mut next, 0x9000_0000, 21).unwrap();
        let second = frame(&mut pieces, &mut next, 0x9020_0000, 21).unwrap();
        assert_ne!(first, second);
        assert_eq!(frame(&mut pieces, &mut next, 0x9000_0000, 21), Ok(first));
        let small = frame(&mut pieces, &mut next, 0x9000_1000, 12);
        assert_eq!(small, Err(PieceError::OtherSize));
    }

    #[test]
    fn memory_that_is_not_a_devices_is_not_lent() {
        let (mut pieces, mut next) = (memory(), 10);
        let mut frame = |address, order| frame(&mut pieces, &mut next, address, order);
        assert_eq!(frame(0x10_0000, 12), Err(PieceError::Nowhere));
        assert_eq!(frame(0x9_f000, 12), Err(PieceError::Nowhere));
        assert_eq!(frame(0, 21), Err(PieceError::Nowhere));
        assert_eq!(frame(u64::MAX - 4095, 12), Err(PieceError::Nowhere));
        assert_eq!(frame(0xa_0800, 12), Err(PieceError::Misaligned));
        assert_eq!(frame(0x8000_0000, 30), Err(PieceError::Misaligned));
        assert!(frame(0xf_f000, 12).is_ok());
        assert!(frame(0xffff_f000, 12).is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn frames_and_what_is_left_never_overlap_and_nothing_is_lost(
            asked in proptest::collection::vec((0u64..2048, any::<bool>()), 1..60),
        ) {
            let (mut pieces, mut next) = (memory(), 10);
            for (page, large) in asked {
                let (address, order) = match large {
                    true => (0x8000_0000 + (page / 512 * 512) * FRAME, 21),
                    false => (0x8000_0000 + page * FRAME, 12),
                };
                let _ = frame(&mut pieces, &mut next, address, order);
                let free = pieces.free.iter().map(|p| (p.base, p.frames * FRAME));
                let made = pieces.made.iter().map(|m| (m.base, 1u64 << m.order));
                let mut all: Vec<(u64, u64)> = free.chain(made).collect();
                all.sort_unstable();
                prop_assert!(all.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
                prop_assert_eq!(all.iter().map(|(_, bytes)| bytes).sum::<u64>(), (96 + (1 << 19)) * FRAME);
            }
        }
    }
}
