//! The store's clock, as the answers tell it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

use super::{Bucket, Patience};
use crate::Result;

impl Bucket {
    /// The store's clock in seconds.
    pub(crate) async fn clock(&self) -> Result<i64> {
        self.touch_with(Patience::Full).await?.ok_or_else(|| {
            self.unavailable(
                "ask for the time",
                "the answers have no Date header".to_owned(),
                "without the store's clock nothing can be told to be old enough to delete",
            )
        })
    }

    /// One listing of at most one key: the cheapest proof that bucket and credentials are right.
    /// Returns the store's clock in seconds.
    pub(crate) async fn touch(&self) -> Result<Option<i64>> {
        self.touch_with(Patience::Probe).await
    }

    async fn touch_with(&self, patience: Patience) -> Result<Option<i64>> {
        let date = DateHeader::default();
        let request = self
            .client_for(patience)
            .list_objects_v2()
            .bucket(&self.uri.bucket)
            .prefix(self.key("v1/"))
            .max_keys(1);
        match request.customize().interceptor(date.clone()).send().await {
            Ok(_) => Ok(date.seconds()),
            Err(error) => Err(self.failure("list", error).await),
        }
    }
}

/// Catches the `Date` header of a response: the store's clock.
#[derive(Debug, Clone, Default)]
pub(super) struct DateHeader(Arc<Mutex<Option<i64>>>);

impl DateHeader {
    /// Seconds since 1970.
    pub(super) fn seconds(&self) -> Option<i64> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Intercept for DateHeader {
    fn name(&self) -> &'static str {
        "the store's clock"
    }

    fn read_after_transmit(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        let date = context.response().headers().get("date");
        let seconds = date.and_then(|date| DateTime::from_str(date, Format::HttpDate).ok());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = seconds.map(|date| date.secs());
        Ok(())
    }
}

pub(super) fn age(last_modified: Option<&DateTime>, now: Option<i64>) -> Option<Duration> {
    let age = now? - last_modified?.secs();
    Some(Duration::from_secs(u64::try_from(age).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_never_negative() {
        let written = DateTime::from_secs(100);
        assert_eq!(
            age(Some(&written), Some(130)),
            Some(Duration::from_secs(30))
        );
        assert_eq!(age(Some(&written), Some(90)), Some(Duration::ZERO));
        assert_eq!(age(None, Some(90)), None);
    }
}
