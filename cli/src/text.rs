//! The job report for people.

use std::fmt::Write;

use crate::report::{JobReport, Outcome, Task};

/// Tasks that are shown one by one; beyond it only the sums are, and the JSON has them all.
const TASKS_SHOWN: usize = 200;

/// The whole report as text, ending with a line break.
pub(crate) fn render(report: &JobReport) -> String {
    let mut text = String::new();
    if !report.tasks.is_empty() {
        render_tasks(&mut text, report);
        render_types(&mut text, report);
    }
    render_facts(&mut text, report);
    text
}

fn render_tasks(text: &mut String, report: &JobReport) {
    let mut rows = vec![row([
        "TASK",
        "TYPE",
        "STATE",
        "WALL TIME",
        "STARTED AT",
        "ATTEMPTS",
        "WORKER",
    ])];
    rows.extend(report.tasks.iter().take(TASKS_SHOWN).map(task_row));
    push_table(text, &rows, &[0, 3, 5]);
    if let Some(more) = report
        .tasks
        .len()
        .checked_sub(TASKS_SHOWN)
        .filter(|more| *more > 0)
    {
        let _ = writeln!(text, "... and {more} more; --output json has all of them");
    }
    text.push('\n');
}

fn task_row(task: &Task) -> Vec<String> {
    row([
        &task.id.to_string(),
        &task.task_type,
        task.state,
        &task.wall_seconds.map_or_else(|| "-".to_owned(), duration),
        task.started_at.as_deref().unwrap_or("-"),
        &task.attempts.to_string(),
        task.worker.as_deref().unwrap_or("-"),
    ])
}

fn render_types(text: &mut String, report: &JobReport) {
    let mut rows = vec![row(["TYPE", "COUNT", "TOTAL", "MEAN", "MAX", "ATTEMPTS"])];
    rows.extend(report.task_types.iter().map(|task_type| {
        row([
            &task_type.task_type,
            &task_type.count.to_string(),
            &duration(task_type.total_seconds),
            &duration(task_type.mean_seconds),
            &duration(task_type.max_seconds),
            &task_type.attempts.to_string(),
        ])
    }));
    push_table(text, &rows, &[1, 2, 3, 4, 5]);
    text.push('\n');
}

fn render_facts(text: &mut String, report: &JobReport) {
    let mut facts: Vec<(&str, String)> = vec![("Job", job_line(report))];
    if let Some(execution) = &report.execution {
        let size = match execution.segment_po2 {
            0 => String::new(),
            po2 => format!(" (segmentPo2 {po2})"),
        };
        // A backend that only executes may neither cut segments nor learn the program's identity.
        if execution.segments > 0 {
            facts.push(("Segments", format!("{}{size}", execution.segments)));
        }
        facts.push(("User cycles", grouped(execution.user_cycles)));
        facts.push(("Total cycles", grouped(execution.total_cycles)));
        if let Some(gas) = execution.gas {
            facts.push(("Gas", format!("{} PGU", grouped(gas))));
        }
        if !execution.program_id.is_empty() {
            facts.push(("Program id", execution.program_id.clone()));
        }
    }
    if report.timing.started_at.is_some() {
        facts.push(("Elapsed", duration(report.timing.elapsed_seconds)));
    }
    if let Some(hertz) = report.timing.effective_hz {
        facts.push(("Effective", format!("{} Hz", grouped(hertz.round() as u64))));
    }
    if let Some(rate) = report.timing.pgu_per_second {
        facts.push((
            "Gas per second",
            format!("{} PGU/s", grouped(rate.round() as u64)),
        ));
    }
    if report.attempts.total > 0 {
        let mut attempts = format!("{} ({} failed)", report.attempts.total, report.attempts.failed);
        if report.workers.restarts > 0 {
            let _ = write!(attempts, ", workers started again: {}", report.workers.restarts);
        }
        facts.push(("Attempts", attempts));
    }
    if let Some(verification) = &report.verification {
        let worker = verification.worker.as_deref().unwrap_or("a worker");
        let line = format!(
            "{} on {worker}, against program {}",
            verification.verifier, verification.program_id
        );
        facts.push(("Verified by", line));
    }
    if let Some(file) = &report.artifacts.proof {
        facts.push((
            "Proof",
            format!(
                "{} ({} bytes, sha256 {})",
                file.path,
                grouped(file.bytes),
                file.sha256
            ),
        ));
    }
    if let Some(file) = &report.artifacts.public_values {
        facts.push((
            "Public values",
            format!("{} ({} bytes)", file.path, grouped(file.bytes)),
        ));
    }
    if let Some(path) = &report.artifacts.report {
        facts.push(("Report", path.clone()));
    }
    if let Some(directory) = &report.run_directory {
        facts.push(("Run folder", directory.clone()));
    }
    for (name, value) in facts {
        let _ = writeln!(text, "{:<15}{value}", format!("{name}:"));
    }
}

fn job_line(report: &JobReport) -> String {
    let name = if report.metadata.name.is_empty() {
        &report.metadata.manifest
    } else {
        &report.metadata.name
    };
    let what = report
        .proof
        .as_ref()
        .map(|proof| format!(" ({} {})", proof.system, proof.kind))
        .unwrap_or_default();
    let outcome = match report.outcome {
        Outcome::Succeeded if report.emulated => "emulated: no proof was made".to_owned(),
        Outcome::Succeeded if report.proved => "proved and verified".to_owned(),
        Outcome::Succeeded => "executed; no proof was asked for".to_owned(),
        Outcome::Failed => format!("failed: {}", report.reason),
        Outcome::BadInput => format!("bad input: {}", report.reason),
        Outcome::Interrupted => "interrupted".to_owned(),
    };
    format!("{name}{what}: {outcome}")
}

/// Seconds with a precision that fits their size.
pub(crate) fn duration(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.2} s");
    }
    let whole = seconds.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, minutes, rest) => format!("{minutes} min {rest:02} s"),
        (hours, minutes, rest) => format!("{hours} h {minutes:02} min {rest:02} s"),
    }
}

/// A number with commas between groups of three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).into()
}

/// Appends a table whose columns are as wide as their widest cell; columns of numbers are right-aligned.
fn push_table(text: &mut String, rows: &[Vec<String>], right_aligned: &[usize]) {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = if right_aligned.contains(&column) {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:<width$}  ")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn numbers_are_grouped_in_threes() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn durations_fit_their_size() {
        for (seconds, text) in [
            (0.25, "0.25 s"),
            (61.0, "1 min 01 s"),
            (3725.0, "1 h 02 min 05 s"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn an_emulated_job_never_reads_like_a_proof() {
        let mut report = JobReport::new(Path::new("a.yaml"));
        report.emulated = true;
        report.outcome = Outcome::Succeeded;
        let text = render(&report);
        assert!(text.contains("no proof was made"), "{text}");
        assert!(!text.contains("proved and verified"), "{text}");
    }

    #[test]
    fn a_table_is_aligned() {
        let mut text = String::new();
        push_table(
            &mut text,
            &[row(["A", "N"]), row(["long", "7"]), row(["b", "12"])],
            &[1],
        );
        assert_eq!(text, "A      N\nlong   7\nb     12\n");
    }
}
