//! The same work is done once, and gives the same bytes wherever it is done.

use crate::place::Place;
use crate::steps::{all, reproducible};

#[test]
#[ignore = "many minutes; `make test-full` runs it"]
fn a_second_chain_does_no_work_and_says_so() {
    let mut place = Place::new();
    place.chain("here", all());
    let artifacts = place.artifacts("here");
    for step in all() {
        let again = place.run("here", step.job, &step.arguments).expect(0);
        again.says(&["already done"]);
        assert_eq!(place.outputs("here", &step)["cached"], true);
    }
    assert_eq!(place.artifacts("here"), artifacts);

    // From an empty store elsewhere, everything up to the checkpoints has the same ids; scores hold times.
    place.chain("there", reproducible());
    place.agree("here", "there");

    // A lost score is made again, and what follows from it; the rest stays.
    place.lose("here/v1/artifacts/scores/", 1);
    let remade: Vec<&str> = all()
        .iter()
        .filter(|step| place.outputs("here", step)["cached"] == false)
        .map(|step| step.job)
        .collect();
    assert_eq!(remade, ["evaluate", "build-leaderboard"]);
}
