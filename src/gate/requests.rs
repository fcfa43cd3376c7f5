//! The requests that a guest makes of the machine through its devices; most of them end the machine.

use coracle_devices::guest_request::{GuestRequest, GuestRequestSink};

use super::Gate;
use crate::ending::{Ending, PanicEvidence};

impl GuestRequestSink for Gate {
    fn post(&self, request: GuestRequest) {
        let ending = match request {
            GuestRequest::PowerOff => Ending::PoweredOff,
            GuestRequest::Reset(source) => Ending::Reset { source },
            GuestRequest::DebugExit(code) => Ending::Exited { code },
            GuestRequest::Panicked => Ending::Panicked { evidence: PanicEvidence::Device },
            GuestRequest::CrashKernelTakesOver => {
                self.lock().crash_kernel = true;
                return;
            }
            GuestRequest::PanicText => {
                self.lock().panic_text = true;
                self.changed.notify_all();
                return;
            }
        };
        Gate::post(self, ending);
    }
}
