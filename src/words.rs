//! Counts, durations and lists of names, as people read them. What is written in the configuration is written by
//! [`settings`](crate::settings).

use std::time::Duration;

/// `1 node`, `2 nodes`.
#[must_use]
#[cfg(any(test, feature = "daemon"))]
pub(crate) fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// `a, b and c`, or of more than `most` names `a, b, c and 9 more`, where `rest` is the last word.
#[must_use]
#[cfg(any(test, feature = "daemon"))]
pub(crate) fn listed(names: &[&str], most: usize, rest: &str) -> String {
    let (shown, others) = names.split_at(names.len().min(most));
    let rest = format!("{} {rest}", others.len());
    let more = (!others.is_empty()).then_some(rest.as_str());
    let parts: Vec<&str> = shown.iter().copied().chain(more).collect();
    match parts.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, before)) => format!("{} and {last}", before.join(", ")),
        None => String::new(),
    }
}

/// `ms` milliseconds in their two largest units, for a table: `3h 12m`, `45s`, `350ms`.
#[must_use]
#[cfg(any(test, feature = "daemon"))]
pub(crate) fn brief(ms: u64) -> String {
    if ms < 1000 {
        return format!("{ms}ms");
    }
    let seconds = ms / 1000;
    let units = [(seconds / 86_400, 'd'), (seconds / 3600 % 24, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')];
    let first = units.iter().position(|(n, _)| *n > 0).unwrap_or(units.len() - 1);
    let shown = units[first..].iter().take(2).filter(|(n, _)| *n > 0);
    shown.map(|(n, unit)| format!("{n}{unit}")).collect::<Vec<_>>().join(" ")
}

/// `ms` milliseconds for a sentence: to the minute from ten minutes on, to the second above ten seconds. `1day 3h 12m`,
/// `45s`, `3s 350ms`.
#[must_use]
pub(crate) fn rounded(ms: u64) -> String {
    let ms = match ms {
        600_000.. => ms - ms % 60_000,
        10_001.. => ms - ms % 1000,
        _ => ms,
    };
    humantime::format_duration(Duration::from_millis(ms)).to_string()
}

/// When `at` is, seen from `now`, both UTC milliseconds: `in 3h 12m`, `2m 5s ago`, `now`.
#[must_use]
#[cfg(any(test, feature = "daemon"))]
pub(crate) fn relative(at: u64, now: u64) -> String {
    let apart = at.abs_diff(now);
    match apart {
        0..1000 => "now".to_owned(),
        _ if at > now => format!("in {}", brief(apart)),
        _ => format!("{} ago", brief(apart)),
    }
}

/// How far a clock is off: `-12ms`, `+1500ms`, `+3m 20s`. To the millisecond below a minute, where that matters.
#[must_use]
#[cfg(any(test, feature = "daemon"))]
pub(crate) fn offset(ms: i64) -> String {
    let size = ms.unsigned_abs();
    let size = if size < 60_000 { format!("{size}ms") } else { brief(size) };
    match ms {
        0 => size,
        1.. => format!("+{size}"),
        _ => format!("-{size}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_their_two_largest_units() {
        let now = 1_000_000_000_u64;
        for (offset, text) in [
            (0, "now"),
            (999, "now"),
            (-999, "now"),
            (1_000, "in 1s"),
            (-59_999, "59s ago"),
            (60_000, "in 1m"),
            (-125_000, "2m 5s ago"),
            (3 * 3_600_000 + 12 * 60_000 + 9_000, "in 3h 12m"),
            (-(86_400_000 + 59_000), "1d ago"),
            (2 * 86_400_000 + 3_600_000, "in 2d 1h"),
        ] {
            assert_eq!(relative(now.checked_add_signed(offset).unwrap(), now), text, "{offset}");
        }
        assert_eq!((brief(350), brief(0)), ("350ms".to_owned(), "0ms".to_owned()));
    }

    #[test]
    fn a_duration_in_a_sentence_is_as_exact_as_its_size_asks_for() {
        for (ms, text) in [
            (0, "0s"),
            (3_350, "3s 350ms"),
            (10_000, "10s"),
            (10_999, "10s"),
            (599_999, "9m 59s"),
            (659_999, "10m"),
            (97_920_000 + 59_999, "1day 3h 12m"),
        ] {
            assert_eq!(rounded(ms), text, "{ms}");
        }
    }

    #[test]
    fn the_offset_of_a_clock_has_its_sign() {
        let shown = [0, -12, 1_500, 59_999, -60_000, 200_000].map(offset);
        assert_eq!(shown, ["0ms", "-12ms", "+1500ms", "+59999ms", "-1m", "+3m 20s"]);
    }

    #[test]
    fn of_many_names_the_first_are_listed_and_the_others_counted() {
        let names = ["a", "b", "c", "d", "e"];
        let shown = [0, 1, 2, 3, 4, 5].map(|count| listed(&names[..count], 3, "more"));
        assert_eq!(shown, ["", "a", "a and b", "a, b and c", "a, b, c and 1 more", "a, b, c and 2 more"]);
    }

    #[test]
    fn one_is_no_plural() {
        assert_eq!([0, 1, 2].map(|count| counted(count, "node")), ["0 nodes", "1 node", "2 nodes"]);
    }
}
