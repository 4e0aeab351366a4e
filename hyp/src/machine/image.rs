//! The header of an arm64 kernel `Image` (Linux `Documentation/arch/arm64/booting.rst`, "Call the kernel image").

use core::fmt;

/// Bytes in the header.
pub const HEADER_SIZE: usize = 64;
const MAGIC: [u8; 4] = *b"ARM\x64";
const FLAG_BIG_ENDIAN: u64 = 1 << 0;
/// What `text_offset` and the placement of the image are relative to.
const ALIGNMENT: u64 = 2 << 20;

/// Why a kernel cannot be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// It has only so many bytes.
    TooSmall(u64),
    /// It is compressed: the plain `Image` is needed.
    Compressed,
    /// It has no magic number, but this in its place.
    Magic([u8; 4]),
    /// It is big-endian.
    BigEndian,
    /// It is so old that it does not say how much memory it needs.
    NoSize,
    /// It lies at this address and not at its `text_offset` from a multiple of 2 MiB.
    Misplaced {
        /// Where it lies.
        address: u64,
        /// Its `text_offset`.
        text_offset: u64,
    },
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall(size) => write!(f, "has {size} bytes, which is no arm64 Image"),
            Self::Compressed => write!(f, "is compressed: give the plain arm64 Image"),
            Self::Magic(found) => write!(f, "is no arm64 Image (magic {found:02x?})"),
            Self::BigEndian => write!(f, "is big-endian"),
            Self::NoSize => write!(f, "does not say how much memory it needs (kernel before 3.17)"),
            Self::Misplaced { address, text_offset } => {
                write!(f, "lies at {address:#x}, not {text_offset:#x} above a multiple of 2 MiB")
            }
        }
    }
}

impl core::error::Error for ImageError {}

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    /// Bytes between a multiple of 2 MiB and where it is loaded.
    pub text_offset: u64,
    /// Bytes of memory that it takes from there on, at least those in the file.
    pub size: u64,
}

impl Image {
    /// Reads the header of an image of `file_size` bytes.
    ///
    /// # Errors
    /// [`ImageError`], all but [`ImageError::Misplaced`].
    pub fn read(header: &[u8], file_size: u64) -> Result<Self, ImageError> {
        if header.starts_with(&[0x1f, 0x8b]) {
            return Err(ImageError::Compressed);
        }
        let Some(header) = header.first_chunk::<HEADER_SIZE>() else {
            return Err(ImageError::TooSmall(file_size));
        };
        let word = |at: usize| u64::from_le_bytes(core::array::from_fn(|i| header[at + i]));
        let magic = core::array::from_fn(|i| header[56 + i]);
        if magic != MAGIC {
            return Err(ImageError::Magic(magic));
        }
        let (text_offset, size, flags) = (word(8), word(16), word(24));
        if flags & FLAG_BIG_ENDIAN != 0 {
            return Err(ImageError::BigEndian);
        }
        if size == 0 {
            return Err(ImageError::NoSize);
        }
        Ok(Self { text_offset, size: size.max(file_size) })
    }

    /// Checks that the image may run at `address`.
    ///
    /// # Errors
    /// [`ImageError::Misplaced`].
    pub fn check_place(&self, address: u64) -> Result<(), ImageError> {
        let Self { text_offset, .. } = *self;
        let base = address.checked_sub(text_offset);
        match base {
            Some(base) if base.is_multiple_of(ALIGNMENT) => Ok(()),
            _ => Err(ImageError::Misplaced { address, text_offset }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(size: u64, flags: u64) -> [u8; HEADER_SIZE] {
        let mut header = [0; HEADER_SIZE];
        header[16..24].copy_from_slice(&size.to_le_bytes());
        header[24..32].copy_from_slice(&flags.to_le_bytes());
        header[56..60].copy_from_slice(&MAGIC);
        header
    }

    #[test]
    fn a_plain_image_says_what_it_needs() {
        let image = Image::read(&header(0x30_0000, 0xa), 0x10_0000).unwrap();
        assert_eq!(image.size, 0x30_0000);
        assert_eq!(image.check_place(0x4100_0000), Ok(()));
        assert!(matches!(image.check_place(0x4110_0000), Err(ImageError::Misplaced { .. })));
    }

    #[test]
    fn an_image_that_says_too_little_takes_the_file() {
        assert_eq!(Image::read(&header(1, 0), 0x5000).unwrap().size, 0x5000);
    }

    #[test]
    fn what_is_no_image_is_told_why() {
        assert_eq!(Image::read(&[0; 10], 10), Err(ImageError::TooSmall(10)));
        assert_eq!(Image::read(&[0x1f, 0x8b, 8], 3), Err(ImageError::Compressed));
        assert_eq!(Image::read(&[0; 64], 64), Err(ImageError::Magic([0; 4])));
        assert_eq!(Image::read(&header(4096, 1), 64), Err(ImageError::BigEndian));
        assert_eq!(Image::read(&header(0, 0), 64), Err(ImageError::NoSize));
    }
}
