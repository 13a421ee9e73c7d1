//! What was measured, as pictures for `docs/bench/`.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::prelude::*;

use crate::report::Report;
use crate::{key_plane, pod, simulated};
use simulation::large_farm;

type PlotError = DrawingAreaErrorKind<io::Error>;

const SIZE: (u32, u32) = (720, 400);
/// Told apart by shade, too, for a person who sees no colours.
const COLOURS: [RGBColor; 3] = [RGBColor(0, 68, 136), RGBColor(221, 132, 0), RGBColor(120, 120, 120)];

/// One line of a plot.
struct Series {
    label: String,
    points: Vec<(f64, f64)>,
    /// Drawn without its points: it was computed.
    is_model: bool,
}

impl Series {
    fn measured(label: &str, points: Vec<(f64, f64)>) -> Self {
        Self { label: label.to_owned(), points, is_model: false }
    }
}

/// Which axes are logarithmic.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scale {
    Linear,
    LogarithmicY,
    Logarithmic,
}

struct Plot {
    file: &'static str,
    title: &'static str,
    x: &'static str,
    y: &'static str,
    scale: Scale,
    series: Vec<Series>,
}

/// Draws whatever the report has figures for.
pub fn write(report: &Report) -> io::Result<()> {
    let folder = testkit::tree().join("docs/bench");
    std::fs::create_dir_all(&folder)?;
    for plot in plots(report) {
        if plot.series.iter().any(|series| !series.is_model && series.points.len() > 1) {
            let path = folder.join(plot.file);
            draw(&path, &plot).map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
        }
    }
    Ok(())
}

fn plots(report: &Report) -> Vec<Plot> {
    let nodes = |what: &str| -> Vec<(f64, f64)> {
        let at = |nodes: usize| Some((nodes as f64, report.get(&format!("nodes_{nodes}_{what}"))?));
        key_plane::SIZES.into_iter().filter_map(at).collect()
    };
    let of_nodes = |file, title, y, what: &str| {
        let (name, unit) = what
            .rsplit_once("_per_")
            .map_or_else(|| what.rsplit_once('_').unwrap_or((what, "")), |(name, _)| (name, "per_second"));
        let fitted = |of: &str| report.get(&format!("nodes_{name}_{of}_{unit}"));
        let series = match fitted("each").zip(fitted("at_none")) {
            Some((each, at_none)) => {
                let points = [0.0, key_plane::largest_fitted(what)].map(|nodes| (nodes, at_none + each * nodes)).into();
                vec![
                    Series { label: "line fitted".to_owned(), points, is_model: true },
                    Series::measured("measured", nodes(what)),
                ]
            }
            None => vec![Series::measured("", nodes(what))],
        };
        Plot { file, title, x: "nodes", y, scale: Scale::Linear, series }
    };
    let of_pods = |file, title, y, what: &str| {
        let series = pod::RATES.map(|rate| {
            let at = |hosts: usize| Some((hosts as f64, report.get(&pod::named(hosts, rate, what))?));
            let points = pod::HOSTS.into_iter().filter_map(at).collect();
            Series::measured(&format!("{rate} sessions a second"), points)
        });
        Plot { file, title, x: "hosts of the pod", y, scale: Scale::LogarithmicY, series: series.into() }
    };
    vec![
        of_nodes(
            "rotate.svg",
            "From rotate to the last node that holds the key, slowest of ten",
            "seconds",
            "rotate_to_last_most_seconds",
        ),
        of_nodes(
            "messages.svg",
            "Messages of a farm in which nothing happens",
            "messages a second",
            "messages_per_second",
        ),
        of_nodes(
            "bytes.svg",
            "Bytes through the broker in a farm in which nothing happens",
            "bytes a second",
            "broker_bytes_per_second",
        ),
        of_nodes("failover.svg", "From the death of the leader to the next one", "seconds", "failover_seconds"),
        of_nodes("broker-memory.svg", "Memory of the broker, two connections a node", "bytes", "broker_resident_bytes"),
        of_pods("session-cpu.svg", "The broker's CPU for one session", "microseconds", "broker_cpu_microseconds"),
        of_pods("session-bytes.svg", "Bytes through the broker for one session", "bytes", "broker_session_bytes"),
        of_pods(
            "session-node.svg",
            "CPU of each node that receives, for one session",
            "microseconds",
            "receiver_cpu_microseconds",
        ),
        large_farms(report),
    ]
}

/// What the broker delivers for the keys, as the formula says and as simulated farms did.
fn large_farms(report: &Report) -> Plot {
    let at = |nodes: usize| {
        Some((nodes as f64, report.get(&format!("simulated_{nodes}_broker_delivered_bytes_per_second"))?))
    };
    let simulated: Vec<_> = simulated::SIZES.into_iter().filter_map(at).collect();
    let largest = simulated::SIZES[simulated::SIZES.len() - 1];
    let bytes = |what: &str| report.get(&format!("simulated_{largest}_{what}_bytes")).unwrap_or(0.0);
    let (report_bytes, announcement_bytes) = (bytes("report"), bytes("announcement"));
    let formula = (0..=60).map(|step| {
        let n = 10_f64.powf(1.0 + f64::from(step) / 20.0);
        let beat = large_farm::beat(n as usize, Duration::from_secs(2));
        (n, n / (0.95 * beat) * report_bytes + n / beat * announcement_bytes)
    });
    Plot {
        file: "keys.svg",
        title: "What the broker delivers for the keys of a farm in which nothing happens",
        x: "hosts",
        y: "bytes a second",
        scale: Scale::Logarithmic,
        series: vec![
            Series { label: "formula".to_owned(), points: formula.collect(), is_model: true },
            Series::measured("simulated", simulated),
        ],
    }
}

/// From the least to the most of `values`, with some room.
fn range(values: impl Iterator<Item = f64> + Clone, logarithmic: bool) -> Range<f64> {
    let most = values.clone().fold(0.0_f64, f64::max);
    if logarithmic { values.fold(most, f64::min) * 0.7..most * 1.5 } else { 0.0..most * 1.15 }
}

fn draw(path: &Path, plot: &Plot) -> Result<(), PlotError> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let points = plot.series.iter().flat_map(|series| &series.points).copied();
    let x = range(points.clone().map(|point| point.0), plot.scale == Scale::Logarithmic);
    let y = range(points.map(|point| point.1), plot.scale != Scale::Linear);
    let mut builder = ChartBuilder::on(&area);
    builder.caption(plot.title, ("sans-serif", 18)).margin(12).x_label_area_size(40).y_label_area_size(80);
    match plot.scale {
        Scale::Linear => fill(&mut builder.build_cartesian_2d(x, y)?, plot)?,
        Scale::LogarithmicY => fill(&mut builder.build_cartesian_2d(x, y.log_scale())?, plot)?,
        Scale::Logarithmic => fill(&mut builder.build_cartesian_2d(x.log_scale(), y.log_scale())?, plot)?,
    }
    area.present()?;
    Ok(())
}

/// A number at an axis.
fn short(value: &f64) -> String {
    match value.abs() {
        large if large >= 1e6 => format!("{} M", value / 1e6),
        large if large >= 1e4 => format!("{} k", value / 1e3),
        _ => format!("{}", (value * 1e3).round() / 1e3),
    }
}

fn fill<'a, X, Y>(chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>, plot: &Plot) -> Result<(), PlotError>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(plot.x).y_desc(plot.y).x_label_formatter(&short).y_label_formatter(&short).draw()?;
    for (series, colour) in plot.series.iter().zip(COLOURS) {
        let line = chart.draw_series(LineSeries::new(series.points.iter().copied(), colour.stroke_width(2)))?;
        if !series.label.is_empty() {
            line.label(&series.label)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
        }
        if !series.is_model {
            chart.draw_series(series.points.iter().map(|point| Circle::new(*point, 4, colour.filled())))?;
        }
    }
    if plot.series.iter().any(|series| !series.label.is_empty()) {
        let legend = SeriesLabelPosition::UpperLeft;
        chart.configure_series_labels().position(legend).background_style(WHITE).border_style(BLACK).draw()?;
    }
    Ok(())
}
