//! Shows on standard error how far a job is: a bar for each stage on a terminal, plain lines otherwise.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use prover_coordinator::{Feasible, Forecast, JobView, Phase};

use crate::console;

/// Shortest time between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// Where progress is shown.
pub(crate) enum Progress {
    /// On a terminal.
    Bars(Bars),
    /// Into a file or a pipe.
    Lines(Lines),
}

impl Progress {
    /// Bars if standard error is a terminal.
    pub(crate) fn new() -> Self {
        if std::io::stderr().is_terminal() {
            Progress::Bars(Bars {
                all: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()),
                stages: BTreeMap::new(),
                waiting: None,
            })
        } else {
            Progress::Lines(Lines {
                last: String::new(),
                last_at: None,
                started: Instant::now(),
                forecast: None,
            })
        }
    }

    /// Shows the latest view.
    pub(crate) fn show(&mut self, view: &JobView) {
        match self {
            Progress::Bars(bars) => bars.show(view),
            Progress::Lines(lines) => {
                if let Some(line) = lines.next(view, Instant::now()) {
                    console::say(&line);
                }
            }
        }
    }

    /// Prints a line between or above what is shown.
    pub(crate) fn say(&self, line: &str) {
        match self {
            // A terminal that is gone can't be told about it.
            Progress::Bars(bars) => drop(bars.all.println(line)),
            Progress::Lines(_) => console::say(line),
        }
    }

    /// Leaves the terminal as it is, with the last state shown.
    pub(crate) fn finish(&self) {
        if let Progress::Bars(bars) = self {
            bars.stages.values().for_each(ProgressBar::abandon);
            bars.waiting.iter().for_each(ProgressBar::finish_and_clear);
        }
    }
}

/// One bar for each stage.
pub(crate) struct Bars {
    all: MultiProgress,
    stages: BTreeMap<u32, ProgressBar>,
    waiting: Option<ProgressBar>,
}

impl Bars {
    fn show(&mut self, view: &JobView) {
        if view.phase == Phase::Queued {
            let all = &self.all;
            let waiting = self
                .waiting
                .get_or_insert_with(|| all.add(ProgressBar::new_spinner()));
            waiting.set_message(waiting_line(view));
            waiting.tick();
        } else if let Some(waiting) = self.waiting.take() {
            waiting.finish_and_clear();
        }
        for stage in &view.stages {
            let all = &self.all;
            let later = self
                .stages
                .range(stage.order + 1..)
                .next()
                .map(|(_, bar)| bar.clone());
            let bar = self.stages.entry(stage.order).or_insert_with(|| {
                let bar = ProgressBar::new(stage.total)
                    .with_prefix(stage.name.to_string())
                    .with_style(style());
                match later {
                    Some(later) => all.insert_before(&later, bar),
                    None => all.add(bar),
                }
            });
            bar.set_length(stage.total);
            bar.set_position(stage.done);
            bar.set_message(if stage.running > 0 {
                format!("{} running", stage.running)
            } else {
                String::new()
            });
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix:>10} [{bar:40}] {pos:>5}/{len:<5} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// Plain lines: one for each change, not more often than `LINE_INTERVAL`.
pub(crate) struct Lines {
    last: String,
    last_at: Option<Instant>,
    started: Instant,
    /// Reason of the last forecast that was shown.
    forecast: Option<&'static str>,
}

impl Lines {
    fn next(&mut self, view: &JobView, now: Instant) -> Option<String> {
        let line = if view.phase == Phase::Queued {
            waiting_line(view)
        } else {
            stages_line(view)
        };
        if let Some(forecast) = &view.forecast
            && self.forecast != Some(forecast.reason)
        {
            self.forecast = Some(forecast.reason);
            return Some(forecast_line(forecast));
        }
        let too_early = self
            .last_at
            .is_some_and(|at| now.duration_since(at) < LINE_INTERVAL);
        if line.is_empty() || line == self.last || (too_early && !view.phase.is_terminal()) {
            return None;
        }
        self.last.clone_from(&line);
        self.last_at = Some(now);
        Some(format!(
            "[{:>6.1} s] {line}",
            now.duration_since(self.started).as_secs_f64()
        ))
    }
}

/// Whether the deadline can be met: shown whenever the reason changes.
fn forecast_line(forecast: &Forecast) -> String {
    let feasible = match forecast.feasible {
        Feasible::Yes => "feasible",
        Feasible::No => "not feasible",
        Feasible::Unknown => "not known to be feasible",
    };
    format!("deadline {feasible} ({}): {}", forecast.reason, forecast.message)
}

fn waiting_line(view: &JobView) -> String {
    if view.message.is_empty() {
        format!("waiting: {}", view.reason)
    } else {
        format!("waiting: {}", view.message)
    }
}

fn stages_line(view: &JobView) -> String {
    let stages: Vec<String> = view
        .stages
        .iter()
        .map(|stage| match stage.running {
            0 => format!("{} {}/{}", stage.name, stage.done, stage.total),
            running => format!(
                "{} {}/{} ({running} running)",
                stage.name, stage.done, stage.total
            ),
        })
        .collect();
    stages.join(", ")
}
