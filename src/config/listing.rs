//! The history of the configuration as documents, for the control socket and for commands that work
//! on the files themselves.

use serde_json::{Value, json};

use super::versions::{Note, Unread, Version, Versions};

/// Every version that is there, the newest first, with what it is.
pub fn history(versions: &Versions) -> Value {
    let number = |note| versions.mark(note).map(|mark| mark.version);
    let (current, good) = (number(Note::Current), number(Note::LastGood));
    let trial = versions.trial().map(|trial| trial.mark.version);
    let rejected = versions.rejected();
    let rows = versions.numbers().into_iter().rev().map(|number| {
        let mut is = Vec::new();
        for (what, which) in [("current", current), ("last_good", good), ("probation", trial)] {
            if which == Some(number) {
                is.push(what);
            }
        }
        match versions.read(number) {
            Ok(Version { header, .. }) => {
                let why = rejected.iter().find(|known| known.mark.sha256 == header.sha256);
                let mut row = serde_json::to_value(&header).unwrap_or_default();
                row["is"] = json!(is);
                row["rejected"] = json!(why.map(|rejected| &rejected.reason));
                row
            }
            Err(error) => json!({"version": number, "is": is, "fault": error.to_string()}),
        }
    });
    json!({ "versions": rows.collect::<Vec<_>>() })
}

/// One version with its text.
///
/// # Errors
/// When it is not there, or not whole.
pub fn show(versions: &Versions, number: u64) -> Result<Value, Unread> {
    let Version { header, text } = versions.read(number)?;
    let mut document = serde_json::to_value(&header).unwrap_or_default();
    document["text"] = Value::from(text);
    Ok(document)
}
