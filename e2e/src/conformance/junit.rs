//! A report as JUnit XML, which every CI system shows.

use std::fmt::Write;

use super::report::{Count, Finding, Outcome, Report};

/// The report as one test suite.
pub fn junit(report: &Report) -> String {
    let count = |count| report.counted(count);
    let time: f64 = report.findings.iter().map(|f| f.took.as_secs_f64()).sum();
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"device-plugin-conformance\" \
         tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" time=\"{time:.3}\">\n",
        report.findings.len(),
        count(Count::Fail),
        count(Count::Broken),
        count(Count::Skip) + count(Count::Warn),
    );
    for finding in &report.findings {
        let _infallible = writeln!(xml, "{}", case(report, finding));
    }
    xml.push_str("</testsuite>\n");
    xml
}

fn case(report: &Report, finding: &Finding) -> String {
    let Finding {
        number,
        name,
        model,
        outcome,
        took,
        ..
    } = finding;
    let open = format!(
        "  <testcase classname=\"kubelet-{model}\" name=\"{number:02} {name}\" time=\"{:.3}\"",
        took.as_secs_f64()
    );
    let (element, message, text) = match (outcome, report.count(finding)) {
        (Outcome::Pass, _) => return format!("{open}/>"),
        (Outcome::Skip(what), Count::Fail) => ("failure", format!("needs {what}"), ""),
        (Outcome::Skip(what), _) => ("skipped", format!("needs {what}"), ""),
        (Outcome::Fail { expected, seen, .. }, Count::Fail) => {
            ("failure", format!("expected: {expected}"), seen.as_str())
        }
        (Outcome::Fail { expected, seen, .. }, _) => {
            ("skipped", format!("expected: {expected}; seen: {seen}"), "")
        }
        (Outcome::Broken(error), _) => ("error", error.clone(), ""),
    };
    format!(
        "{open}>\n    <{element} message=\"{}\">{}</{element}>\n  </testcase>",
        escaped(&message),
        escaped(text)
    )
}

/// Text for any place in XML 1.0, which knows no other control characters than these three.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push_str("&#10;"),
            '\t' => escaped.push_str("&#9;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::behaviour::Level;
    use super::*;
    use crate::kubelet::Model;

    #[test]
    fn whatever_a_plugin_prints_is_well_formed() {
        let finding = |number, outcome| Finding {
            number,
            name: "a_name",
            model: Model::V1_37,
            outcome,
            notes: Vec::new(),
            took: Duration::from_millis(1500),
        };
        let report = Report {
            findings: vec![
                finding(1, Outcome::Pass),
                finding(
                    2,
                    Outcome::Fail {
                        expected: "\"x\" < y".to_owned(),
                        seen: "a\u{1b}[1m & b\n]]>".to_owned(),
                        level: Level::Must,
                    },
                ),
                finding(3, Outcome::Skip("action `x`".to_owned())),
                finding(4, Outcome::Broken("no disk".to_owned())),
            ],
            level: Level::Must,
            strict: false,
        };
        let xml = junit(&report);
        assert!(
            xml.contains("tests=\"4\" failures=\"1\" errors=\"1\" skipped=\"1\""),
            "{xml}"
        );
        assert!(
            xml.contains("message=\"expected: &quot;x&quot; &lt; y\""),
            "{xml}"
        );
        assert!(xml.contains("a\u{fffd}[1m &amp; b&#10;]]&gt;"), "{xml}");
        assert_eq!(report.exit_code(), 2);
    }
}
