//! Paths: what is one, and what a relative one means (docs/misc/xenstore.txt of Xen).

use alloc::format;
use alloc::string::{String, ToString};

use idl::xs_wire::Errno;

/// Longest absolute path (`XENSTORE_ABS_PATH_MAX`).
const ABSOLUTE_MAX: usize = 3072;
/// Longest relative path (`XENSTORE_REL_PATH_MAX`).
const RELATIVE_MAX: usize = 2048;

/// A domain's own directory.
pub fn home(domain: u16) -> String {
    format!("/local/domain/{domain}")
}

/// The absolute path that `text` means for a domain.
pub fn absolute(text: &str, domain: u16) -> Result<String, Errno> {
    let relative = !text.starts_with('/');
    let longest = if relative { RELATIVE_MAX } else { ABSOLUTE_MAX };
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'/' | b'_' | b'@');
    if text.is_empty()
        || text.len() > longest
        || !text.bytes().all(good)
        || text.contains("//")
        || (text.len() > 1 && text.ends_with('/'))
    {
        return Err(Errno::Inval);
    }
    if relative {
        Ok(format!("{}/{text}", home(domain)))
    } else {
        Ok(text.to_string())
    }
}

/// The parent of an absolute path; `None` for the root.
pub fn parent(path: &str) -> Option<&str> {
    match path.rfind('/')? {
        _ if path == "/" => None,
        0 => Some("/"),
        at => path.get(..at),
    }
}

/// True if `path` is `ancestor` or below it.
pub fn below(path: &str, ancestor: &str) -> bool {
    ancestor == "/"
        || path
            .strip_prefix(ancestor)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
