//! Writes the manual pages and the shell completions of `resumed`, made from the definition of its command line and from the
//! commented configuration, into a folder: `manual FOLDER`. Packages ship what it writes; the daemon carries none of it.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::aot::{Shell, generate_to};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};
use resumed::internals::cli::Cli;

/// Every key with its default and what it means.
const CONFIGURATION: &str = include_str!("../etc/resumed.toml");

/// Where the pages say that they belong.
const MANUAL: &str = "resumed";

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: manual FOLDER")?);
    fs::create_dir_all(&folder)?;
    let command = Cli::command().disable_help_subcommand(true);
    write_pages(&command, &[], &folder)?;
    fs::write(folder.join("resumed.toml.5"), in_ascii(&configuration_page()?))?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command.clone(), "resumed", &folder)?;
    }
    Ok(())
}

/// `resumed.1` and a page for each command below it, such as `resumed-secret-new.1`.
fn write_pages(command: &Command, above: &[&str], folder: &Path) -> Result<(), Box<dyn Error>> {
    let words = [above, &[command.get_name()]].concat();
    // Names are borrowed for as long as the program runs, which is not long.
    let page: &'static str = words.join("-").leak();
    // A page of a command stands alone: its synopsis has all the words, and it has the options that all commands take.
    let mut alone = command.clone().name(page).bin_name(words.join(" ")).display_name(page);
    if !above.is_empty() {
        alone = alone.args(Cli::command().get_arguments().filter(|argument| argument.is_global_set()).cloned());
    }
    let man = Man::new(alone).manual(MANUAL).source(format!("resumed {}", env!("CARGO_PKG_VERSION")));
    let mut text = Vec::new();
    man.render(&mut text)?;
    see_also(page).to_writer(&mut text)?;
    // The help's examples and explanations.
    let text = String::from_utf8(text)?.replace(".SH EXTRA\n", ".SH NOTES\n");
    fs::write(folder.join(format!("{page}.1")), in_ascii(&text))?;
    for below in command.get_subcommands() {
        write_pages(below, &words, folder)?;
    }
    Ok(())
}

/// Every other character by its code point, as groff wants it without a preprocessor.
fn in_ascii(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii() { c.to_string() } else { format!("\\[u{:04X}]", u32::from(c)) }).collect()
}

fn see_also(page: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    let others: Vec<_> = ["resumed(1)", "resumed-status(1)", "resumed.toml(5)"]
        .into_iter()
        .filter(|other| *other != format!("{page}(1)"))
        .collect();
    roff.text([roman(others.join(", "))]);
    roff
}

/// The comments of the commented configuration, section by section and key by key.
fn configuration_page() -> Result<String, Box<dyn Error>> {
    let mut roff = Roff::new();
    let source = format!("resumed {}", env!("CARGO_PKG_VERSION"));
    roff.control("TH", ["resumed.toml", "5", "", source.as_str(), MANUAL]);
    roff.control("SH", ["NAME"]).text([roman("resumed.toml - the settings of one node of resumed")]);
    roff.control("SH", ["SYNOPSIS"]).text([italic("/etc/resumed/resumed.toml")]);
    roff.control("SH", ["DESCRIPTION"]);
    let mut said: Vec<&str> = Vec::new();
    let mut keys = 0;
    for line in CONFIGURATION.lines() {
        if line.is_empty() {
            paragraph(&mut roff, &mut said);
        } else if let Some(section) = line.strip_prefix('[') {
            let section = section.strip_suffix(']').ok_or_else(|| format!("a section without its end: {line:?}"))?;
            // What stands above a section's name is about the section.
            let about = std::mem::take(&mut said);
            roff.control("SH", [format!("[{section}]").as_str()]);
            said = about;
            paragraph(&mut roff, &mut said);
        } else if let Some((key, default)) =
            line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).and_then(|rest| rest.split_once(" = "))
        {
            roff.control("TP", []);
            roff.text([bold(key), roman(format!(" = {default}"))]);
            keys += 1;
            if said.is_empty() {
                roff.text([roman("See the key above.")]);
            } else {
                roff.text([roman(std::mem::take(&mut said).join(" "))]);
            }
        } else if let Some(comment) = line.strip_prefix('#') {
            said.push(comment.trim_start());
        } else {
            return Err(format!("etc/resumed.toml: neither a comment nor a section: {line:?}").into());
        }
    }
    paragraph(&mut roff, &mut said);
    roff.control("SH", ["SEE ALSO"]).text([roman("resumed(1), resumed-check(1)")]);
    if keys == 0 {
        return Err("etc/resumed.toml: no key found".into());
    }
    Ok(roff.render())
}

fn paragraph(roff: &mut Roff, said: &mut Vec<&str>) {
    let text: Vec<_> = std::mem::take(said).into_iter().filter(|line| !line.is_empty()).collect();
    if !text.is_empty() {
        roff.control("PP", []).text([roman(text.join(" "))]);
    }
}
