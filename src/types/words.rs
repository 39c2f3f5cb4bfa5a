//! Numbers as people say them.

use std::time::Duration;

/// Minutes and hours.
pub fn duration_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=99 => format!("{seconds} s"),
        100..=5999 => format!("{} min", (seconds + 30) / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Digits in groups of three.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in bytes, decimal units.
pub fn size_words(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} bytes"),
        10_000..=9_999_999 => format!("{} KB", bytes / 1000),
        10_000_000..=9_999_999_999 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(
            [0, 12, 123, 1234, 1234567].map(grouped),
            ["0", "12", "123", "1,234", "1,234,567"].map(str::to_owned)
        );
    }

    #[test]
    fn durations_and_sizes_are_short() {
        assert_eq!(
            [42, 150, 7300].map(|s| duration_words(Duration::from_secs(s))),
            ["42 s", "3 min", "2 h 1 min"]
        );
        assert_eq!([99, 20_000, 20_000_000].map(size_words), ["99 bytes", "20 KB", "20 MB"]);
    }
}
