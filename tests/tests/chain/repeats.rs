//! The same work is done once, and gives the same bytes wherever it is done.

use crate::place::{Place, binary, has_time};
use crate::steps::{all, beginning, training};

#[test]
fn a_second_chain_does_no_work_and_says_so() {
    if !has_time("a_second_chain_does_no_work_and_says_so") {
        return;
    }
    let mut place = Place::new();
    place.chain("here", all());
    let artifacts = place.artifacts("here");
    for step in all() {
        let again = place.run("here", step.job, &step.arguments).expect(0);
        again.says(&["already done"]);
    }
    assert_eq!(place.artifacts("here"), artifacts);

    // From an empty store elsewhere, everything up to the checkpoints has the same ids; scores hold times.
    place.chain("there", beginning().into_iter().chain(training()).collect());
    for step in beginning().iter().chain(&training()) {
        let (here, there) = (place.outputs("here", step), place.outputs("there", step));
        assert_eq!(
            here["outputs"], there["outputs"],
            "{} {:?}",
            step.job, step.arguments
        );
        assert_eq!(here["cached"], true);
    }

    // A lost score is made again, and what follows from it; the rest stays.
    place.lose("here/v1/artifacts/scores/", 1);
    let remade: Vec<&str> = all()
        .iter()
        .filter(|step| place.outputs("here", step)["cached"] == false)
        .map(|step| step.job)
        .collect();
    let follows: Vec<&str> = ["evaluate", "build-leaderboard"]
        .into_iter()
        .filter(|job| binary(job).is_file())
        .collect();
    assert_eq!(remade, follows);
}
