//! Renders the leaderboard and one page per version to static HTML.
