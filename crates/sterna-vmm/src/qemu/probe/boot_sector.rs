//! The smallest guest that shows that it runs: 94 bytes of machine code.

/// Bytes of the image. The code takes one sector; firmware boots from no disk that is much smaller.
const IMAGE_BYTES: usize = 1 << 20;

/// Guest physical address of the first counted page; consecutive 4 KiB pages follow.
pub const COUNTED_FROM: u64 = 1 << 20;

/// Where in the code the number of pages stands.
const PAGES_AT: usize = 44;

#[rustfmt::skip]
const CODE: [u8; 94] = [
    0xfa,                                     // cli
    0x31, 0xc0,                               // xor ax, ax
    0x8e, 0xd8,                               // mov ds, ax
    0xe4, 0x92, 0x0c, 0x02, 0xe6, 0x92,       // in al, 0x92; or al, 2; out 0x92, al   (A20)
    0x0f, 0x01, 0x16, 0x58, 0x7c,             // lgdt [0x7c58]
    0x0f, 0x20, 0xc0,                         // mov eax, cr0
    0x0c, 0x01,                               // or al, 1                  (protected mode)
    0x0f, 0x22, 0xc0,                         // mov cr0, eax
    0xea, 0x1d, 0x7c, 0x08, 0x00,             // jmp 8:0x7c1d
    0x66, 0xb8, 0x10, 0x00,                   // mov ax, 0x10              (32 bits from here)
    0x8e, 0xd8,                               // mov ds, ax
    0x31, 0xd2,                               // xor edx, edx
    0x42,                                     // again: inc edx
    0xbb, 0x00, 0x00, 0x10, 0x00,             // mov ebx, 0x100000
    0xb9, 0x00, 0x00, 0x00, 0x00,             // mov ecx, pages
    0x89, 0x13,                               // next: mov [ebx], edx
    0x81, 0xc3, 0x00, 0x10, 0x00, 0x00,       // add ebx, 0x1000
    0x49,                                     // dec ecx
    0x75, 0xf5,                               // jnz next
    0xeb, 0xe8,                               // jmp again
    0x8d, 0x76, 0x00,                         // (padding to 0x7c40)
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,     // descriptors: none,
    0xff, 0xff, 0x00, 0x00, 0x00, 0x9a, 0xcf, 0x00,     // flat code,
    0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00,     // flat data
    0x17, 0x00, 0x40, 0x7c, 0x00, 0x00,       // 0x7c58: their limit and address
];

/// A disk image that boots and then, for ever, writes the number of the pass it is in to the first
/// word of each of `pages` pages from [`COUNTED_FROM`] on.
///
/// At any moment the words of these pages are some number for the first so many pages, and one less
/// for the rest: a copy in which they are anything else is stale or torn. The number is kept in a
/// register, so that a guest whose registers got lost shows.
#[must_use]
pub fn boot_image(pages: u32) -> Vec<u8> {
    let mut image = vec![0; IMAGE_BYTES];
    image[..CODE.len()].copy_from_slice(&CODE);
    image[PAGES_AT..PAGES_AT + 4].copy_from_slice(&pages.to_le_bytes());
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    image
}
