//! A training that its machine asked to go, and that goes on elsewhere.

use serde_json::Value;

use trial::Ended;

use crate::place::Place;
use crate::steps::{Step, beginning, training};
use crate::under_way::{Started, signal};

/// Long enough to be met in the middle, and no state but the one that the signal asks for.
const LONG: [&str; 5] = [
    "--json",
    "--set=optim.epochs=6",
    "--set=stage1.epochs=6",
    "--set=optim.checkpoint_every_steps=100000",
    "--set=optim.eval_every_steps=20",
];

/// Steps that the first attempt had done when the second one began.
fn resumed_at(ended: &Ended) -> Option<u64> {
    let events = ended
        .stderr
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut resumed = events.filter(|event| event["type"] == "resumed");
    resumed.find_map(|event| event["data"]["step"].as_u64())
}

#[test]
fn a_preempted_training_goes_on_on_another_machine_as_if_it_had_never_stopped() {
    let place = Place::new();
    place.chain("calm", beginning());
    place.chain("spot", beginning());
    // One of each job: what they share knows no algorithm.
    let of_each = |step: &Step| {
        ["value", "v001"]
            .iter()
            .any(|word| step.arguments.contains(word))
    };
    for Step { job, arguments } in training().into_iter().filter(of_each) {
        let given = [&arguments[..], &LONG].concat();
        let calm = place.run("calm", job, &given).expect(0);

        let started = Started::at_work(place.job("spot", job, &given));
        signal("TERM", started.job.id());
        started.end().expect(143);
        // Another machine has the store alone.
        let mut elsewhere = place.job("spot", job, &given);
        elsewhere
            .env("WMTP_SCRATCH", place.path("elsewhere-scratch"))
            .env("WMTP_CACHE", place.path("elsewhere-cache"));
        let again = Ended::of(&mut elsewhere).expect(0);
        let step = resumed_at(&again).expect("the second attempt goes on from a saved state");
        assert!(step > 0, "{job}: nothing was saved");
        // Of a checkpoint every loss of every step is a part, and so of its id.
        assert_eq!(
            again.result()["outputs"],
            calm.result()["outputs"],
            "{job} {arguments:?}"
        );
    }
}
