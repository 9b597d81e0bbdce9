//! `--profile`: what each step of a plan took.

use std::time::Instant;

use yolo_core::plan::Peak;
use yolo_core::{Plan, PlanSession};

use crate::stdout::say;

/// Runs that a step's time is the median of.
const RUNS: usize = 9;

/// Prints a row a step: kernel, shape of its result, time, share of all, speed, and that over the machine's peak.
pub(super) fn print(plan: &Plan, session: &mut PlanSession, input: &[f32]) -> anyhow::Result<()> {
    let mut runs: Vec<Vec<u64>> = Vec::new();
    for _ in 0..RUNS {
        plan.profile(session, input)?;
        runs.push(session.times().to_vec());
    }
    let peak = Peak::measure(plan.threads())?;
    let on_tiles = plan.steps().iter().any(|step| step.on_tiles);
    let tiles = peak.tiles.filter(|_| on_tiles).map(|tiles| format!(", {:.1} on tiles", tiles / 1e9));
    let tiles = tiles.unwrap_or_default();
    say!("\npeak of {} threads: {:.1} GFLOP/s{tiles}, measured", plan.threads(), peak.vectors / 1e9)?;
    say!("{:<36} {:<26} {:>14} {:>9} {:>7} {:>8} {:>6}", "step", "kernel", "result", "ms", "share", "GFLOP/s", "peak")?;
    let median = |step: usize| {
        let mut times: Vec<u64> = runs.iter().map(|run| run[step]).collect();
        times.sort_unstable();
        times[RUNS / 2] as f64 / 1e6
    };
    let times: Vec<f64> = (0..plan.steps().len()).map(median).collect();
    let total: f64 = times.iter().sum();
    for (step, ms) in plan.steps().iter().zip(&times) {
        let result = step.output.map(|v| format!("{}x{}x{}", v.channels, v.height, v.width)).unwrap_or_default();
        let share = 100.0 * ms / total;
        let speed = if step.operations > 0.0 {
            let speed = step.operations / ms / 1e6;
            format!(" {speed:>8.1} {:>5.0}%", 100.0 * speed * 1e9 / peak.of(step))
        } else {
            String::new()
        };
        let name = shortened(&step.name);
        say!("{name:<36} {:<26} {result:>14} {ms:>9.3} {share:>6.1}%{speed}", step.kernel)?;
    }
    let start = Instant::now();
    plan.run(session, input, None)?;
    say!("{:<36} {:<26} {:>14} {total:>9.3}", "all steps, one by one", "", "")?;
    say!("{:<36} {:<26} {:>14} {:>9.3}", "one run", "", "", start.elapsed().as_secs_f64() * 1e3)?;
    Ok(())
}

fn shortened(name: &str) -> String {
    const LENGTH: usize = 36;
    if name.chars().count() <= LENGTH {
        return name.into();
    }
    name.chars().take(LENGTH - 2).chain("..".chars()).collect()
}
