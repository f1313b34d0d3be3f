//! Which format an `Accept` field asks for (RFC 9110 section 12.5.1).

/// Whether it wants OpenMetrics 1.0 rather than the text format: named as such, and with a higher quality,
/// or with the same where the text format is not named.
pub(super) fn prefers_open_metrics(accept: &str) -> bool {
    let (mut open, mut text) = (None::<u32>, None::<u32>);
    // Which of the ranges that hold the text format says most of it.
    let mut precise = 0;
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let (mut quality, mut version) = (1000, "");
        for parameter in parts {
            let Some((key, value)) = parameter.split_once('=') else { continue };
            let value = value.trim().trim_matches('"');
            match &*key.trim().to_ascii_lowercase() {
                "q" => quality = thousandths(value),
                "version" => version = value,
                _ => {}
            }
        }
        let about_text = match &*name {
            "application/openmetrics-text" if matches!(version, "" | "1.0.0") => {
                open = open.max(Some(quality));
                continue;
            }
            "text/plain" if matches!(version, "" | "0.0.4") => 3,
            "text/*" => 2,
            "*/*" => 1,
            _ => continue,
        };
        if about_text > precise {
            (precise, text) = (about_text, Some(quality));
        } else if about_text == precise {
            text = text.max(Some(quality));
        }
    }
    let Some(open) = open.filter(|quality| *quality > 0) else { return false };
    match text {
        None => true,
        Some(text) => open > text || (open == text && precise < 3),
    }
}

/// A quality in thousandths; nonsense is 0, the most careful reading.
fn thousandths(text: &str) -> u32 {
    let value = text.parse::<f64>().unwrap_or(0.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 1000"
    )]
    let thousandths = (value.clamp(0.0, 1.0) * 1000.0).round() as u32;
    thousandths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_one_that_is_asked_for_most() {
        let open = [
            "application/openmetrics-text",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "text/plain;q=0.3, Application/OpenMetrics-Text;q=0.5",
            "application/openmetrics-text, */*",
            "application/openmetrics-text;q=0.5, text/html",
        ];
        for accept in open {
            assert!(prefers_open_metrics(accept), "{accept}");
        }
        let text = [
            "",
            "*/*",
            "text/plain",
            "application/*",
            "application/json",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=x",
            "application/openmetrics-text;version=2.0.0",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;q=0.3,text/plain;version=0.0.4;q=0.5",
            "application/openmetrics-text,text/plain",
            "application/openmetrics-text;q=0.4,*/*;q=0.5",
            ";;,,==;q",
        ];
        for accept in text {
            assert!(!prefers_open_metrics(accept), "{accept}");
        }
    }
}
