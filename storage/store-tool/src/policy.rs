//! `wmtp-store policy`: who may do what in a store, as the policy that AWS and its kin enforce.

use serde_json::Value;
use wmtp_artifacts::{Role, bucket_policy};
use wmtp_job_kit::{JobError, Tool, ToolCx};

/// Command line of `policy`.
#[derive(Debug, clap::Args)]
pub struct Policy {
    /// reader, trainer or admin: the policy to attach to a user or role; publisher: that of who brings a site to the place
    /// that --store names then. With the ARN of who has it (reader=ARN), as often as there are people: the policy of the
    /// bucket
    #[arg(value_name = "ROLE[=ARN]", required = true, value_parser = grant)]
    grants: Vec<(Role, Option<String>)>,
}

fn grant(text: &str) -> Result<(Role, Option<String>), String> {
    let (name, arn) = match text.split_once('=') {
        Some((name, arn)) => (name, Some(arn.to_owned())),
        None => (text, None),
    };
    let roles = || Role::ALL.into_iter().chain([Role::Publisher]);
    let role = roles().find(|role| role.name() == name).ok_or_else(|| {
        let names: Vec<&str> = roles().map(Role::name).collect();
        format!("expected one of {}", names.join(", "))
    })?;
    Ok((role, arn))
}

impl Tool for Policy {
    const ABOUT: &'static str = "Prints who may do what in a store, as AWS policies: readers look, trainers run jobs and \
                                 delete nothing, admins collect, publishers keep a site's pages. Asks no server.";
    const EXAMPLES: &'static str = "wmtp-store policy trainer --store s3://wmtp/demo
        wmtp-store policy publisher --store s3://reports/micropy
        wmtp-store policy --store s3://wmtp/demo reader=arn:aws:iam::123456789012:role/site trainer=arn:aws:iam::123456789012:role/training";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let policy = self.policy(cx)?;
        let text = serde_json::to_string_pretty(&policy).map_err(JobError::internal)?;
        cx.print(text);
        cx.json_result(policy);
        Ok(())
    }
}

impl Policy {
    fn policy(&self, cx: &ToolCx<'_>) -> Result<Value, JobError> {
        let store = cx.store_uri()?;
        if let [(role, None)] = &self.grants[..] {
            return Ok(role.policy(&store));
        }
        let with_arn = self.grants.iter().map(|(role, arn)| {
            let arn = arn.clone().ok_or_else(|| {
                let error = format!(
                    "{} has no ARN, and a bucket's policy says of whom it speaks",
                    role.name()
                );
                JobError::usage(error).hint("print the policy of one role, or give each its ARN")
            })?;
            Ok((*role, arn))
        });
        let grants = with_arn.collect::<Result<Vec<_>, JobError>>()?;
        Ok(bucket_policy(&store, &grants)?)
    }
}
