//! Renders the page of a leaderboard and nothing else, for `make bench-site`.
//!
//!     leaderboard_page LEADERBOARD_FOLDER OUT

use std::error::Error;
use std::path::Path;

use build_site::{SiteInput, pages};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, out] = &arguments[..] else {
        return Err("usage: leaderboard_page LEADERBOARD_FOLDER OUT".into());
    };
    let input = SiteInput::table("leaderboard", Path::new(folder))?;
    pages::leaderboard(&input)?.write(Path::new(out))?;
    Ok(())
}
