//! Files are written and read without a second model in memory. The only test of its program: an allocator counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use wmtp_model::{
    DType, Device, ParamStore, Params, load_hugging_face, next_token, save_hugging_face,
};

/// Counts what is held and the most that was.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on to the system's allocator as it came.
#[expect(unsafe_code, reason = "an allocator is unsafe by its trait")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller's word.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's word.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `act` returns, and the most bytes that it held beyond those that were held before.
fn most<R>(act: impl FnOnce() -> R) -> (R, usize) {
    let before = HELD.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let made = act();
    (made, MOST.load(Ordering::Relaxed) - before)
}

#[test]
fn no_second_model_is_held_to_write_or_read_one() {
    let params = Params {
        dim: 128,
        ..Params::micro_mtp(512)
    };
    let (dtype, device) = (DType::F32, Device::Cpu);
    let dir = tempfile::tempdir().unwrap();
    let [own, other] = ["own", "other"].map(|name| dir.path().join(name));
    let store = ParamStore::init(&params, 1, dtype, &device).unwrap();
    let model = 4 * params.num_params();
    // The largest tensor is a fortieth of the model; some copies of one are alive while it is converted and checked.
    let some = model / 6;

    let (saved, bytes) = most(|| store.save(&own));
    saved.unwrap();
    assert!(bytes < some, "writing {model} bytes takes {bytes}");
    let (saved, bytes) = most(|| save_hugging_face(&other, &params, &store));
    saved.unwrap();
    assert!(bytes < some, "writing {model} bytes takes {bytes}");

    let (loaded, bytes) = most(|| ParamStore::load(&own, &params, dtype, &device));
    assert_eq!(loaded.unwrap().num_elements(), params.num_params());
    assert!(bytes < model + some, "reading {model} bytes takes {bytes}");
    let next = next_token(&params);
    let model = 4 * next.num_params();
    let (loaded, bytes) = most(|| load_hugging_face(&other, &next, dtype, &device));
    assert_eq!(loaded.unwrap().num_elements(), next.num_params());
    assert!(bytes < model + some, "reading {model} bytes takes {bytes}");
}
