#include "textflag.h"

// A word of 64 bits is low + high<<32. Two sums are kept: A of the whole words, which may wrap, and B of the highs,
// which does not. The lows then sum to A - B<<32, exactly, since that is below 2^64; and the result is lows + highs.
// Three additions or shifts for 32 bytes, where masking lows and highs apart would take four.

// func sumBlocks(p *byte, n int) uint64
TEXT ·sumBlocks(SB), NOSPLIT, $0-24
	MOVQ  p+0(FP), SI
	MOVQ  n+8(FP), CX
	VPXOR Y0, Y0, Y0 // A in four, so that additions need not wait for one another
	VPXOR Y1, Y1, Y1
	VPXOR Y2, Y2, Y2
	VPXOR Y3, Y3, Y3
	VPXOR Y4, Y4, Y4 // B
	VPXOR Y5, Y5, Y5
	VPXOR Y6, Y6, Y6
	VPXOR Y7, Y7, Y7
	SUBQ  $4, CX
	JLT   rest

four:
	VMOVDQU (SI), Y8
	VMOVDQU 32(SI), Y9
	VMOVDQU 64(SI), Y10
	VMOVDQU 96(SI), Y11
	VPADDQ  Y8, Y0, Y0
	VPADDQ  Y9, Y1, Y1
	VPADDQ  Y10, Y2, Y2
	VPADDQ  Y11, Y3, Y3
	VPSRLQ  $32, Y8, Y8
	VPSRLQ  $32, Y9, Y9
	VPSRLQ  $32, Y10, Y10
	VPSRLQ  $32, Y11, Y11
	VPADDQ  Y8, Y4, Y4
	VPADDQ  Y9, Y5, Y5
	VPADDQ  Y10, Y6, Y6
	VPADDQ  Y11, Y7, Y7
	ADDQ    $128, SI
	SUBQ    $4, CX
	JGE     four

rest:
	ADDQ $4, CX
	JZ   done

one:
	VMOVDQU (SI), Y8
	VPADDQ  Y8, Y0, Y0
	VPSRLQ  $32, Y8, Y8
	VPADDQ  Y8, Y4, Y4
	ADDQ    $32, SI
	DECQ    CX
	JNZ     one

done:
	VPADDQ       Y1, Y0, Y0
	VPADDQ       Y3, Y2, Y2
	VPADDQ       Y2, Y0, Y0
	VPADDQ       Y5, Y4, Y4
	VPADDQ       Y7, Y6, Y6
	VPADDQ       Y6, Y4, Y4
	VEXTRACTI128 $1, Y0, X1
	VEXTRACTI128 $1, Y4, X5
	VPADDQ       X1, X0, X0
	VPADDQ       X5, X4, X4
	VPSRLDQ      $8, X0, X1
	VPSRLDQ      $8, X4, X5
	VPADDQ       X1, X0, X0
	VPADDQ       X5, X4, X4
	VMOVQ        X0, AX
	VMOVQ        X4, BX
	VZEROUPPER
	MOVQ         BX, DX
	SHLQ         $32, DX
	SUBQ         DX, AX
	ADDQ         BX, AX
	MOVQ         AX, ret+16(FP)
	RET
