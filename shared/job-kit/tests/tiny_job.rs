//! A job for the tests of the kit: counts to ten and writes the number; can stop, fail, panic and wait on demand.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use wmtp_job_kit::{Follower, Inputs, Job, JobError, Kind, Output, Plan, PlanCx, Run, crew};

/// Flags of the job.
#[derive(Debug, clap::Args)]
struct Tiny {
    /// Text that goes into the output
    #[arg(long, default_value = "tiny")]
    text: String,
    /// Raw data to read
    #[arg(long)]
    data: Option<String>,
    /// How the run ends: done, panic, numeric, refused, full, crew (asks another process for its recipe), or wait (until a
    /// signal, or a file `go` in its folder, and saves then)
    #[arg(long, default_value = "done")]
    end: String,
}

struct TinyWork {
    text: String,
    end: String,
}

const STEPS: u64 = 10;
const WAITING_STEP: u64 = 4;

impl Job for Tiny {
    type Work = TinyWork;
    const NAME: &'static str = "tiny-job";
    const ABOUT: &'static str = "Counts to ten.";
    const EXAMPLES: &'static str = "tiny-job --text hello --store s3://bucket/prefix";
    const VERSION: u32 = 1;

    fn plan(&self, cx: &mut PlanCx<'_>) -> Result<Plan<TinyWork>, JobError> {
        if let Some(data) = &self.data {
            cx.input("data", Kind::RawData, data)?;
        }
        let work = TinyWork {
            text: self.text.clone(),
            end: self.end.clone(),
        };
        let mut plan = Plan::new(work)
            .option("text", self.text.as_str())
            .output("count", Kind::RawData)
            .note("count to ten");
        if let Ok(recipe) = cx.recipe() {
            plan = plan.options(recipe.section_options(&["seed"]));
        }
        Ok(plan)
    }

    fn follow(&self, mut follower: Follower) -> Result<(), JobError> {
        let recipe = follower.recipe().to_json().to_string();
        let links = follower.take_links();
        let leader = links.peers[0].as_ref().expect("the leader is another");
        Ok(crew::send(leader, recipe.as_bytes())?)
    }

    fn run(work: &TinyWork, run: &mut Run) -> Result<Vec<Output>, JobError> {
        let start = match run.latest_checkpoint()? {
            Some((step, dir)) => {
                assert_eq!(std::fs::read_to_string(dir.join("step"))?, step.to_string());
                step
            }
            None => 0,
        };
        let progress = run.progress("counting", "steps", STEPS);
        for step in start..STEPS {
            progress.set(step + 1);
            run.metrics(step, &[("count", step as f64), ("undefined", f64::NAN)]);
            if step == WAITING_STEP.max(start) {
                act(work, run, step)?;
            }
        }
        progress.finish();
        let dir = run.output_dir("count")?;
        std::fs::write(dir.join("count.txt"), format!("{} {STEPS}", work.text))?;
        run.log(format!("counted from {start}"));
        Ok(vec![
            Output::new("count", Kind::RawData, dir).attribute("steps", STEPS),
        ])
    }
}

/// Ends the run as the flags ask, in the middle of the work.
fn act(work: &TinyWork, run: &Run, step: u64) -> Result<(), JobError> {
    match work.end.as_str() {
        "panic" => panic!("planned panic"),
        "numeric" => Err(JobError::numeric("loss is NaN at step 4")),
        "refused" => Err(JobError::refused("the gate is closed").hint("open it")),
        "full" => Err(std::io::Error::from(std::io::ErrorKind::StorageFull).into()),
        "crew" => {
            let (_crew, links) = run.crew(2, 1)?;
            let other = links.peers[1].as_ref().expect("it is another");
            let theirs = crew::receive(other)?.unwrap_or_default();
            let theirs = String::from_utf8_lossy(&theirs);
            let ours = run.recipe().to_json().to_string();
            if theirs == ours {
                return Ok(());
            }
            Err(JobError::internal(format!(
                "ours: {ours}, theirs: {theirs}"
            )))
        }
        "wait" => {
            run.log("waiting for a signal");
            while !run.should_stop() && !Path::new("go").exists() {
                std::thread::sleep(Duration::from_millis(10));
            }
            run.log("saving");
            let dir = run.scratch().join("state");
            std::fs::create_dir_all(&dir)?;
            std::fs::write(dir.join("step"), (step + 1).to_string())?;
            run.save_checkpoint(step + 1, &dir, None)?;
            Err(JobError::preempted())
        }
        _ => Ok(()),
    }
}

fn main() -> ExitCode {
    wmtp_job_kit::main::<Tiny>()
}
