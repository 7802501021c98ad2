//! Kubernetes quantities, compared by value: the API server writes `1024Mi` as `1Gi`.

/// The value of a quantity in thousandths; absent where the text is none.
pub fn milli(text: &str) -> Option<i128> {
    let split = text
        .find(|character: char| !character.is_ascii_digit() && character != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(split)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // Nine digits are what Kubernetes keeps; more would overflow long before they mattered.
    if fraction.len() > 9 || whole.len() > 18 || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    let whole: i128 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let part: i128 = if fraction.is_empty() {
        0
    } else {
        fraction.parse().ok()?
    };
    let factor: i128 = match suffix {
        "m" => 1,
        "" => 1_000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "T" => 1_000_000_000_000_000,
        "Ki" => 1_000 << 10,
        "Mi" => 1_000 << 20,
        "Gi" => 1_000 << 30,
        "Ti" => 1_000 << 40,
        _ => return None,
    };
    (whole.checked_mul(scale)?.checked_add(part)?)
        .checked_mul(factor)
        .map(|value| value / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_amounts_are_equal_whatever_their_form() {
        for (one, other) in [
            ("1024Mi", "1Gi"),
            ("0.5", "500m"),
            ("0", "0Mi"),
            ("1.5Gi", "1536Mi"),
        ] {
            assert!(milli(one).is_some(), "{one:?} is a quantity");
            assert_eq!(milli(one), milli(other), "{one:?} and {other:?}");
        }
    }

    #[test]
    fn other_texts_are_no_quantities() {
        for text in [
            "",
            "Always",
            "1.2.3",
            "64MiB",
            "m",
            "-1",
            "99999999999999999999",
        ] {
            assert_eq!(milli(text), None, "{text:?}");
        }
    }
}
