//! What `make bench-sync` measures: a folder into a store and back, as jobs do it, verified.
//!
//! `transfer put s3://BUCKET/PREFIX FOLDER` prints the id of the artifact, `transfer get s3://BUCKET/PREFIX ID MIRROR`
//! fetches it. `transfer limits FOLDER` prints what this machine allows: bytes per second of hashing, and of writing.

use std::error::Error;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

use sha2::{Digest as _, Sha256};
use wmtp_artifacts::{
    Draft, Kind, Mirror, Provenance, RunId, Store, StoreOptions, cache_key, without_huge_pages,
};

/// As in every job.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Bytes that the limits are measured with, and how many at a time: as fetched contents are written.
const BYTES: usize = 512 << 20;
const BLOCK: usize = 128 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    // As in sync-storage.
    without_huge_pages();
    run()
}

#[tokio::main]
async fn run() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let answer = match args[..] {
        ["put", store, folder] => put(store, Path::new(folder)).await?,
        ["get", store, id, mirror] => get(store, id, Path::new(mirror)).await?,
        ["limits", folder] => limits(Path::new(folder))?,
        _ => return Err("put STORE FOLDER, get STORE ID MIRROR, or limits FOLDER".into()),
    };
    writeln!(std::io::stdout(), "{answer}")?;
    Ok(())
}

async fn connect(uri: &str) -> Result<Store, Box<dyn Error>> {
    Ok(Store::connect(&uri.parse()?, StoreOptions::default()).await?)
}

async fn put(store: &str, folder: &Path) -> Result<String, Box<dyn Error>> {
    let draft = Draft {
        kind: Kind::RawData,
        root: folder.to_owned(),
        attributes: [].into(),
    };
    let key = cache_key("bench", 1, &[], &serde_json::Value::Null)?;
    let provenance = Provenance {
        job: "bench".to_owned(),
        run_id: RunId::for_work("bench", &key),
        attempt: 1,
        code_version: env!("CARGO_PKG_VERSION").to_owned(),
        code_revision: None,
        recipe_version: 1,
        recipe: serde_json::Value::Null,
        options: serde_json::Value::Null,
        inputs: Vec::new(),
        created_at: jiff::Timestamp::now(),
    };
    let manifest = connect(store).await?.publish(&draft, &provenance).await?;
    Ok(manifest.id.to_string())
}

async fn get(store: &str, id: &str, mirror: &Path) -> Result<String, Box<dyn Error>> {
    let mirror = Mirror::open(mirror)?;
    let folder = connect(store).await?.fetch(&id.parse()?, &mirror).await?;
    Ok(folder.display().to_string())
}

fn limits(folder: &Path) -> Result<String, Box<dyn Error>> {
    let path = folder.join("limits");
    let block = vec![7_u8; BLOCK];
    let begun = Instant::now();
    let mut file = File::create(&path)?;
    for _ in 0..BYTES / BLOCK {
        file.write_all(&block)?;
    }
    let written = begun.elapsed();
    drop(file);
    let begun = Instant::now();
    let mut file = File::open(&path)?;
    let mut sha = Sha256::new();
    let mut block = block;
    loop {
        match file.read(&mut block)? {
            0 => break,
            length => sha.update(&block[..length]),
        }
    }
    let hashed = begun.elapsed();
    std::hint::black_box(sha.finalize());
    fs::remove_file(&path)?;
    let rate = |time: std::time::Duration| BYTES as f64 / time.as_secs_f64();
    let (hash, write) = (rate(hashed), rate(written));
    Ok(serde_json::json!({"hash": hash, "write": write}).to_string())
}
