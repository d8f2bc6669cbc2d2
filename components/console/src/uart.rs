//! A 16550 UART, driven by interrupts (National Semiconductor PC16550D data sheet, table II).

use sdk::port::Ports;

/// Ports of one UART.
pub const COUNT: u16 = 8;
/// Bytes that its transmit FIFO holds.
const FIFO: usize = 16;

// Register offsets.
const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const INTERRUPT_IDENTITY: u16 = 2;
const FIFO_CONTROL: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;

const RECEIVED: u8 = 1;
const SENT: u8 = 1 << 1;
const DATA_READY: u8 = 1;
const CAN_SEND: u8 = 1 << 5;
const NONE_PENDING: u8 = 1;

/// The device.
pub struct Uart {
    ports: Ports,
    /// The transmitter interrupt is on.
    sending: bool,
}

impl Uart {
    /// 115200 baud, 8N1, FIFOs on, interrupts for received bytes.
    pub fn new(ports: Ports) -> Uart {
        ports.write(INTERRUPT_ENABLE, 0);
        // Divisor latch: 115200 / 1.
        ports.write(LINE_CONTROL, 0x80);
        ports.write(DATA, 1);
        ports.write(INTERRUPT_ENABLE, 0);
        ports.write(LINE_CONTROL, 3);
        // Enable and clear the FIFOs, interrupt at 1 byte: a key must not wait for others.
        ports.write(FIFO_CONTROL, 0x07);
        // DTR, RTS and OUT2, which lets interrupts out on a PC.
        ports.write(MODEM_CONTROL, 0x0b);
        ports.write(INTERRUPT_ENABLE, RECEIVED);
        Uart {
            ports,
            sending: false,
        }
    }

    /// True while the device asks for attention. The line is one for all causes and triggers by
    /// edge: while any cause holds it, another one makes no edge. So whoever handles an interrupt
    /// goes on until this is false once.
    pub fn asks(&mut self) -> bool {
        self.ports.read(INTERRUPT_IDENTITY) & NONE_PENDING == 0
    }

    /// The next received byte.
    pub fn receive(&mut self) -> Option<u8> {
        (self.ports.read(LINE_STATUS) & DATA_READY != 0).then(|| self.ports.read(DATA))
    }

    /// Sends what `next` gives while the FIFO takes it; an interrupt comes when it takes more.
    pub fn send(&mut self, mut next: impl FnMut() -> Option<u8>) {
        while self.ports.read(LINE_STATUS) & CAN_SEND != 0 {
            for _ in 0..FIFO {
                match next() {
                    Some(byte) => self.ports.write(DATA, byte),
                    None => return self.interrupts(false),
                }
            }
        }
        self.interrupts(true);
    }

    fn interrupts(&mut self, sending: bool) {
        if self.sending != sending {
            self.sending = sending;
            let sent = if sending { SENT } else { 0 };
            self.ports.write(INTERRUPT_ENABLE, RECEIVED | sent);
        }
    }
}
