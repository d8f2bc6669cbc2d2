//! Single values: numbers, sizes, ranges of ports, limits of restarts. Anything else is `None`.

use idl::manifest::Restart;
use toml::de::DeValue;

/// `"never"`, `"always"` or a limit.
pub fn restart(value: &DeValue<'_>) -> Option<Restart> {
    match value.as_str() {
        Some("never") => return Some(Restart::Never),
        Some("always") => return Some(Restart::Always),
        Some(_) => return None,
        None => {}
    }
    let table = value.as_table()?;
    let number = |key| {
        let number = integer(table.get(key)?.get_ref())?;
        u32::try_from(number).ok().filter(|number| *number > 0)
    };
    Some(Restart::Limited {
        times: number("times")?,
        seconds: number("seconds")?,
    })
}

/// A number that is not negative.
pub fn integer(value: &DeValue<'_>) -> Option<u64> {
    let number = value.as_integer()?;
    u64::from_str_radix(number.as_str().trim_start_matches('+'), number.radix()).ok()
}

/// `512M`, `2 GiB`, `64K`: bytes.
pub fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text.get(digits.len()..)?.trim();
    let shift = match unit.to_ascii_lowercase().as_str() {
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// `0x3f8+8` or `1016`: first port and count.
pub fn port_range(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| match text.trim().strip_prefix("0x") {
        Some(hex) => u16::from_str_radix(hex, 16).ok(),
        None => text.trim().parse().ok(),
    };
    let (first, count) = match text.split_once('+') {
        Some((first, count)) => (number(first)?, number(count)?),
        None => (number(text)?, 1),
    };
    (count > 0 && u32::from(first) + u32::from(count) <= 0x1_0000).then_some((first, count))
}
