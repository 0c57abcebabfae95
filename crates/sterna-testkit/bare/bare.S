// A guest without an operating system: it rewrites memory at a pace, checks every word of it, and
// tells its progress on the first serial port, in the lines of the flight recorder.
//
// It is a multiboot image, which QEMU takes as `-kernel`: firmware runs 16-bit code, the loader
// enters here in 32-bit protected mode without paging. It uses no interrupts, no page tables and
// no 64-bit code, so that it also runs under a KVM that cannot run a stock operating system.
//
// Memory is `pages` pages from MEMORY on. In each page one word of every STRIDE bytes is its own
// address, combined by xor with a key. The first `hot` pages are rewritten round after round, each
// time with the next key; the others keep the key that they were filled with. Each page is checked
// before it is rewritten: a page that is stale by a round, of another place, or torn, is told with
// the first word that is wrong. Key and places are kept in registers, never in memory: else memory
// that is stale as a whole, with the place in it, would look right. (Not every word is used, because
// some KVMs emulate such code, a few million instructions a second.)
//
// Time is the first counter of the PIT, read and never waited for by interrupt. A step, in which
// `per_step` hot pages and as many others are done, takes at least a millisecond.

#define MEMORY      0x1000000
#define PAGE        4096
#define STRIDE      64
#define KEY_STEP    0x9e3779b1      /* odd: no key comes twice in 2^32 rounds */
#define STEP_COUNTS 1193            /* of the PIT, 1193182 a second */
#define COM1        0x3f8
#define PIT         0x40

.intel_syntax noprefix
.code32
.section .text
.globl _start

// The multiboot header: loaded as it is, to the addresses that it names.
#define MAGIC 0x1badb002
#define FLAGS 0x10000
header:
    .long MAGIC, FLAGS, -(MAGIC + FLAGS)
    .long header, header, 0, end, _start

// What the builder of the image fills in; see `bare.rs`.
pages:          .long 0
hot:            .long 0
per_step:       .long 0
steps_per_line: .long 0

checked:        .long 0
written:        .long 0
step:           .long 0
steps_to_line:  .long 0
hot_end:        .long 0
left:           .long 0
cold_end:       .long 0
step_began:     .long 0

_start:
    cli
    cld
    lea esp, [end]
    mov dx, COM1 + 2
    mov al, 7                       // FIFOs on and empty
    out dx, al
    mov al, 0x34                    // counter 0: both bytes, rate generator
    out PIT + 3, al
    xor eax, eax                    // from 65536 down
    out PIT, al
    out PIT, al

    mov eax, [hot]
    shl eax, 12
    add eax, MEMORY
    mov [hot_end], eax
    mov eax, [pages]
    shl eax, 12
    add eax, MEMORY
    mov [cold_end], eax

    xor ebx, ebx                    // the key of what is filled
    mov edi, MEMORY
fill:
    call rewrite
    cmp edi, [cold_end]
    jne fill
    mov dword ptr [written], 0

    lea esi, [ready_text]
    call put_text
    mov eax, [pages]
    shl eax, 12
    call put_number
    lea esi, [ws_text]
    call put_text
    mov eax, [hot]
    shl eax, 12
    call put_number
    call end_line

    // From here on: edi and esi, the next hot page and the next other one, change places for the
    // time that the others are done; ebp, the key of hot pages that are yet to be done in this round.
    mov edi, MEMORY
    mov esi, [hot_end]
    xor ebp, ebp
    call counter
    mov [step_began], eax
    mov eax, [steps_per_line]
    mov [steps_to_line], eax

next_step:
    mov eax, [per_step]
    mov [left], eax
next_hot:
    mov ebx, ebp
    call check
    add ebx, KEY_STEP
    call rewrite
    cmp edi, [hot_end]
    jne 1f
    mov edi, MEMORY
    mov ebp, ebx
1:  dec dword ptr [left]
    jnz next_hot

    mov eax, [per_step]
    mov [left], eax
    xchg esi, edi
    xor ebx, ebx
next_cold:
    call check
    add edi, PAGE
    cmp edi, [cold_end]
    jne 1f
    mov edi, [hot_end]
1:  dec dword ptr [left]
    jnz next_cold
    xchg esi, edi

    inc dword ptr [step]
    dec dword ptr [steps_to_line]
    jnz wait
    mov eax, [steps_per_line]
    mov [steps_to_line], eax
    mov al, 't'
    call put
    mov al, ' '
    call put
    mov eax, [step]
    call put_number
    mov al, ' '
    call put
    mov eax, [checked]
    call put_number
    mov al, ' '
    call put
    mov eax, [written]
    call put_number
    call end_line
wait:
    call counter
    mov edx, [step_began]
    sub edx, eax                    // it counts down
    movzx edx, dx
    cmp edx, STEP_COUNTS
    jb wait
    mov [step_began], eax
    jmp next_step

// Checks the page at edi, which must have the key ebx; tells the first wrong word. Keeps both.
check:
    inc dword ptr [checked]
    mov edx, edi
    lea ecx, [edi + PAGE]
1:  mov eax, edx
    xor eax, ebx
    cmp eax, [edx]
    jne wrong
    add edx, STRIDE
    cmp edx, ecx
    jne 1b
    ret
wrong:
    pushad
    push [edx]
    push eax
    sub edx, edi
    push edx
    sub edi, MEMORY
    shr edi, 12
    push edi
    lea esi, [wrong_text]           // each text ends before its number
    mov ecx, 4
1:  call put_text
    pop eax
    push ecx
    call put_number
    pop ecx
    loop 1b
    call end_line
    popad
    ret

// Writes the page at edi with the key ebx; leaves edi at the next page. Keeps ebx.
rewrite:
    inc dword ptr [written]
    lea ecx, [edi + PAGE]
1:  mov eax, edi
    xor eax, ebx
    mov [edi], eax
    add edi, STRIDE
    cmp edi, ecx
    jne 1b
    ret

// Reads the PIT's counter 0 into eax.
counter:
    xor eax, eax
    out PIT + 3, al                 // holds the value until it is read
    in al, PIT
    mov ah, al
    in al, PIT
    xchg al, ah
    ret

// Writes the text at esi up to its zero; leaves esi after it.
put_text:
1:  lodsb
    test al, al
    jz 2f
    call put
    jmp 1b
2:  ret

// Writes eax in decimal.
put_number:
    push 0                          // no digit
    mov ecx, 10
1:  xor edx, edx
    div ecx
    add edx, '0'
    push edx
    test eax, eax
    jnz 1b
2:  pop eax
    test eax, eax
    jz 3f
    call put
    jmp 2b
3:  ret

end_line:
    mov al, '\n'

// Writes the byte al once the port takes it. Changes edx and ah.
put:
    mov ah, al
    mov dx, COM1 + 5
1:  in al, dx
    test al, 0x20
    jz 1b
    mov dx, COM1
    mov al, ah
    out dx, al
    ret

ready_text: .asciz "READY fill="
ws_text:    .asciz " ws="
wrong_text: .asciz "WRONG page="
            .asciz " offset="
            .asciz " expected="
            .asciz " found="

    .balign 16
    .space 1024                     // the stack
end:
