//! What was measured, as pictures for `docs/bench/`.

use std::io;
use std::path::Path;

use plotters::prelude::*;

use crate::report::Report;

const SIZE: (u32, u32) = (720, 400);

/// File, title, unit, and the figures of each number of nodes.
const PLOTS: [(&str, &str, &str, &str); 4] = [
    (
        "rotate.svg",
        "From rotate to the last node that holds the key, slowest of ten",
        "seconds",
        "rotate_to_last_most_seconds",
    ),
    ("messages.svg", "Messages of a farm in which nothing happens", "a second", "messages_per_second"),
    ("bytes.svg", "Bytes through the broker in a farm in which nothing happens", "a second", "broker_bytes_per_second"),
    ("failover.svg", "From the death of the leader to the next one", "seconds", "failover_seconds"),
];

/// Draws whatever the report has figures for.
pub fn write(report: &Report) -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/bench");
    std::fs::create_dir_all(&folder)?;
    let series = |what: &str| -> Vec<(f64, f64)> {
        let at = |nodes: usize| Some((nodes as f64, report.get(&format!("nodes_{nodes}_{what}"))?));
        crate::key_plane::SIZES.into_iter().filter_map(at).collect()
    };
    for (file, title, unit, what) in PLOTS {
        let points = series(what);
        if points.len() > 1 {
            let path = folder.join(file);
            draw(&path, title, unit, &points)
                .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
        }
    }
    Ok(())
}

fn draw(path: &Path, title: &str, unit: &str, points: &[(f64, f64)]) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let most = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).fold(0.0_f64, f64::max);
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..most(|point| point.0) * 1.05, 0.0..most(|point| point.1) * 1.15)?;
    chart.configure_mesh().x_desc("nodes").y_desc(unit).draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), BLUE.stroke_width(2)))?;
    chart.draw_series(points.iter().map(|point| Circle::new(*point, 4, BLUE.filled())))?;
    area.present()?;
    Ok(())
}
