//! Sizes in bytes as people write them.

/// Decimal and binary units, largest first within each kind.
const UNITS: [(&str, u64); 9] = [
    ("tib", 1 << 40),
    ("gib", 1 << 30),
    ("mib", 1 << 20),
    ("kib", 1 << 10),
    ("tb", 1_000_000_000_000),
    ("gb", 1_000_000_000),
    ("mb", 1_000_000),
    ("kb", 1_000),
    ("b", 1),
];

/// Bytes of `"8GiB"`, `"512MB"`, `"1.5 GiB"` or `"1073741824"`: a number and an optional unit, in any case.
///
/// # Errors
/// A message that shows what was expected, without the place.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size; write e.g. \"8GiB\", \"512MB\" or a number of bytes");
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = (&trimmed[..digits], trimmed[digits..].trim().to_ascii_lowercase());
    let scale = match unit.as_str() {
        "" => 1,
        _ => UNITS.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale).ok_or_else(wrong)?,
    };
    let bytes = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(scale),
        Err(_) => {
            let number: f64 = number.parse().map_err(|_| wrong())?;
            let bytes = number * scale as f64;
            // 2^64 as a float is exact: anything below it fits.
            (bytes < 18_446_744_073_709_551_616.0).then_some(bytes as u64)
        }
    };
    match bytes {
        Some(0) => Err(format!("`{text}` is no memory at all; write e.g. \"8GiB\"")),
        Some(bytes) => Ok(bytes),
        None => Err(format!("`{text}` is more than a computer can address; write e.g. \"8GiB\"")),
    }
}

/// `bytes` for people: `1.50 GiB`, `12.0 MiB`, `17 B`.
pub fn format_bytes(bytes: u64) -> String {
    for (name, scale) in [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= scale {
            let value = bytes as f64 / scale as f64;
            let digits = if value < 10.0 {
                2
            } else if value < 100.0 {
                1
            } else {
                0
            };
            return format!("{value:.digits$} {name}");
        }
    }
    format!("{bytes} B")
}

/// `bytes` as it is written into a configuration: exact, with a unit where it divides.
pub(super) fn exact_bytes(bytes: u64) -> String {
    for (name, scale) in [("GiB", 1u64 << 30), ("MiB", 1 << 20)] {
        if bytes >= scale && bytes.is_multiple_of(scale) {
            return format!("\"{}{name}\"", bytes / scale);
        }
    }
    bytes.to_string()
}
